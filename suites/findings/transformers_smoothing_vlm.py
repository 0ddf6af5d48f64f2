"""With label smoothing, decoder-only vision-language models learn the present token instead of the next one.

A user trains such a model with label_smoothing_factor. Trainer shifts the labels for classes in its list of causal
language models alone; Qwen2-VL and others are in the list of image-text models, and their labels are not shifted.
"""

import logging
import sys
import tempfile
import warnings

import torch
import torch.nn.functional as F
import transformers as hf

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
ROWS = [{"input_ids": list(range(10, 22)), "labels": list(range(10, 22))}] * 4  # text alone


def language_model():
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, **HEADS))


def vision_language_model():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    config = hf.Qwen2VLConfig(text_config={**SIZES, **HEADS, "rope_parameters": rope}, vision_config=vision)
    config.image_token_id, config.video_token_id, config.vision_start_token_id = 2, 3, 4
    return hf.Qwen2VLForConditionalGeneration(config)


def losses(make):
    """The smoothed loss of the next token by hand, and the one with which Trainer makes its first step."""
    torch.manual_seed(0)
    model, batch = make(), torch.tensor([row["input_ids"] for row in ROWS])
    logits = model(input_ids=batch).logits[:, :-1]
    by_hand = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), label_smoothing=0.1).item()
    with tempfile.TemporaryDirectory() as folder:
        options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        options |= {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4, "label_smoothing_factor": 0.1}
        trainer = hf.Trainer(model, hf.TrainingArguments(output_dir=folder, **options), train_dataset=ROWS)
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()
    return by_hand, trainer.state.log_history[0]["loss"]


if __name__ == "__main__":
    by_hand, control = losses(language_model)
    expected, found = losses(vision_language_model)
    print(f"expected loss {expected:.4f} of Qwen2VLForConditionalGeneration (Qwen2ForCausalLM: {by_hand:.4f})")
    print(f"found    loss {found:.4f} (Qwen2ForCausalLM: {control:.4f})")
    if abs(control - by_hand) > 1e-3 * by_hand:
        raise RuntimeError("the control, Qwen2ForCausalLM, is wrong too")
    wrong = abs(found - expected) > 1e-3 * expected
    print("still there" if wrong else "gone")
    sys.exit(wrong)
