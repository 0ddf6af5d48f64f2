"""``plumbline submit`` and ``plumbline verify``."""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from harness.commands.console import Console, UserError, table
from harness.options import helped

if TYPE_CHECKING:
    from harness.submission import Bundle, Outcome

SHOWN = 30  # refuted figures that are printed


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "submit", help="bundle a run, so that others can check it and run it again", description=submit.__doc__
    )
    command.add_argument("run", metavar="RUN", help="the run's id (plumbline records --runs)")
    command.add_argument("--store", default="plumbline.db", **helped("--store"))
    command.add_argument("--output", type=Path, metavar="FILE", help="the bundle (default: RUN.plumbline.zip)")
    command.set_defaults(call=submit)

    command = commands.add_parser("verify", help="check a bundle, and run its cases again", description=verify.__doc__)
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="a file of plumbline submit")
    command.add_argument("--sha256", metavar="HEX", help="the bundle's digest, as plumbline submit printed it")
    command.add_argument("--dry", action="store_true", help="check the bundle only; run nothing")
    command.add_argument("--store", metavar="URL", help="keep the new records there (default: they are not kept)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the outcome of each figure there")
    command.set_defaults(call=verify, session=True)


def submit(options: argparse.Namespace) -> int:
    """Writes a zip file of the run's records, its environment, command, commit and versions, with a digest of each
    part. Passwords and tokens, and names of hosts, users and folders, are taken out."""
    from harness.store import Store, StoreError
    from harness.submission import BundleError, make

    path = options.output or Path(f"{Path(options.run).name}.plumbline.zip")
    try:
        bundle = make(Store.open(options.store, create=False), options.run, path)
    except (StoreError, BundleError) as error:
        raise UserError(str(error)) from None
    print(f"{path}: {len(bundle.records)} records; publish its digest with it:")
    print(bundle.digest)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Checks that a bundle is whole, runs its cases again with the options of its command, and says for each figure
    whether it is confirmed or refuted: parity by its verdict, memory and traffic within their bands, speed on the same
    hardware only. Nothing of the bundle is executed. The exit status is 1 if a figure is refuted."""
    from harness.submission import BundleError, inconsistent, read

    try:
        bundle = read(options.bundle)
        if options.sha256 and options.sha256.lower() != bundle.digest:
            raise BundleError(f"{options.bundle}: its digest is {bundle.digest}, not the one given")
        outcomes = inconsistent(bundle.records)
        console = Console()
        for line in _about(bundle):
            console.print(escape(line))
        if not options.dry:
            known = {(one.case, one.measure, one.quantity) for one in outcomes}
            found = _again(bundle, options.store)
            outcomes += [one for one in found if (one.case, one.measure, one.quantity) not in known]
    except BundleError as error:
        raise UserError(str(error)) from None
    if options.json:
        _write(options.json, bundle, outcomes, options.dry)
    return _tell(console, outcomes, options.dry)


def _about(bundle: "Bundle") -> list[str]:
    """The bundle in words, and what differs here."""
    about, here = bundle.run, _here(bundle)
    commit = str(about["commit"] or "unknown commit") + (", with local changes" if about["dirty"] else "")
    lines = [
        f"run {about['run']}, {about['status']}, {len(bundle.records)} records, digest {bundle.digest}",
        f"command: {about['command']}",
        f"hardware: {about['hardware']}",
        f"source: {commit}",
    ]
    theirs, ours = about["packages"], here["packages"]
    apart = [f"{n} {v} there, {ours.get(n) or 'none'} here" for n, v in theirs.items() if v and v != ours.get(n)]
    if bundle.environment.get("commit") != here["commit"]:
        apart.append("another commit of Plumbline here")
    return [*lines, f"differs: {'; '.join(apart)}" if apart else "the same versions here"]


def _here(bundle: "Bundle") -> Mapping[str, Any]:
    from harness.store import environment

    return environment(engines=[name for name in bundle.run["packages"] if isinstance(name, str)])


def _again(bundle: "Bundle", url: str | None) -> "list[Outcome]":
    from harness.store import Store, StoreError, hardware_key
    from harness.submission import BundleError, confirm
    from harness.submission.again import arguments, run

    with tempfile.TemporaryDirectory() as folder:
        store = url or str(Path(folder) / "again.db")
        run(arguments(bundle), store, Path(folder) / "report")
        try:
            opened = Store.open(store, create=False)
            (last, *_) = opened.runs()
            records = opened.records(last["run"])
        except StoreError as error:
            raise BundleError(str(error)) from None
    same = hardware_key(last["environment"]) == bundle.run["hardware"]
    return confirm(bundle.records, records, same)


def _write(path: Path, bundle: "Bundle", outcomes: "list[Outcome]", dry: bool) -> None:
    from harness.store import hardware_key

    here = _here(bundle)
    verified = "" if dry else f"{hardware_key(here)}; PyTorch {here['packages']['torch']}"
    found = {"run": bundle.run["run"], "digest": bundle.digest, "verified": verified}
    found |= {"outcomes": [asdict(one) for one in outcomes]}
    try:
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file with --json") from None


def _tell(console: Console, outcomes: "list[Outcome]", dry: bool) -> int:
    from harness.submission.confirm import CONFIRMED, REFUTED, UNKNOWN

    refuted = [one for one in outcomes if one.state == REFUTED]
    if refuted:
        listed = table("case", "figure", "refuted")
        for one in refuted[:SHOWN]:
            listed.add_row(*map(escape, (one.case, f"{one.measure} {one.quantity}", one.reason)))
        console.print(listed)
    reasons = Counter(one.reason for one in outcomes if one.state == UNKNOWN)
    for reason, number in reasons.most_common(5):
        console.print(escape(f"{number} could not be judged: {reason}"))
    counts = Counter(one.state for one in outcomes)
    if dry:
        console.print(f"the bundle is whole; {counts[REFUTED]} figures contradict themselves; nothing was run again")
    else:
        console.print(", ".join(f"{counts[state]} {state}" for state in (CONFIRMED, REFUTED, UNKNOWN)))
    return 1 if refuted else 0
