// The first screen is complete without this script; the script opens folds, searches, and switches the theme.
(() => {
  const root = document.documentElement;
  document.querySelector(".tools").hidden = false;

  const theme = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  prefersDark.addEventListener("change", label);
  label();

  // Folded content is in a template, outside the document, until it is opened.
  const fill = (fold) => {
    const folded = fold.querySelector(":scope > template");
    if (folded) folded.replaceWith(folded.content);
  };
  const unfold = (fold) => { fill(fold); fold.open = true; };
  document.addEventListener("toggle", (event) => { if (event.target.open) fill(event.target); }, true);
  const arrive = () => {
    const fold = document.querySelector("section:target > details.topic");
    if (fold) unfold(fold);
  };
  addEventListener("hashchange", arrive);
  arrive();
  addEventListener("beforeprint", () => {
    for (let folds; (folds = document.querySelectorAll("details:not([open])")).length; ) folds.forEach(unfold);
  });

  const find = document.getElementById("find");
  const found = document.getElementById("found");
  const steps = [document.getElementById("previous"), document.getElementById("next")];
  let entries = null; // searchable entries in page order: the node, its text, its folds
  let matches = [];
  let at = -1;
  const collect = (part, folds) => {
    for (const node of part.querySelectorAll("[data-find], template")) {
      if (node.localName === "template") collect(node.content, [...folds, node.parentElement]);
      else entries.push({ node, folds, text: node.textContent.toLowerCase() });
    }
  };
  const say = () => {
    found.textContent = !find.value.trim() ? "" : at < 0 ? `${matches.length} found` : `${at + 1} of ${matches.length}`;
    for (const step of steps) step.hidden = matches.length === 0;
  };
  const leave = () => {
    for (const node of document.querySelectorAll(".hit")) { node.classList.remove("hit"); node.removeAttribute("aria-current"); }
  };
  const go = (step) => {
    if (!matches.length) return;
    leave();
    at = at < 0 && step < 0 ? matches.length - 1 : (at + step + matches.length) % matches.length;
    const { node, folds } = matches[at];
    folds.forEach(fill);
    for (let fold = node.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    node.classList.add("hit");
    node.setAttribute("aria-current", "true");
    node.scrollIntoView({ block: "center", behavior: "instant" });
    say();
  };
  const search = () => {
    if (!entries) { entries = []; collect(document, []); }
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    matches = words.length ? entries.filter(({ text }) => words.every((word) => text.includes(word))) : [];
    at = -1;
    leave();
    say();
  };
  find.addEventListener("input", search);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-go]"); // to an entry that may be folded
    if (!link) return;
    event.preventDefault();
    find.value = link.dataset.go;
    search();
    go(1);
  });
  find.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); go(event.shiftKey ? -1 : 1); }
  });
  steps.forEach((step, place) => step.addEventListener("click", () => go(place ? 1 : -1)));
})();
