// The first screen is complete without this script; the script opens folds, loads sections, searches, filters the lists
// of cases, and switches the theme.
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

  // A section may be in a file beside this page: a script, since a page that was opened from a file may run other files
  // but not read them. Until then the fold holds a link to the same section as a page.
  const parts = [...document.querySelectorAll("details[data-part]")];
  const linkOf = (fold) => fold.querySelector(":scope > .apart > a");
  window.plumbline = (name, html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    linkOf(parts.find((fold) => fold.dataset.part === name))?.parentElement.replaceWith(template);
  };
  const asked = new Map(); // fold → promise of its content
  const load = (fold) => {
    const link = linkOf(fold);
    if (!link) return Promise.resolve();
    if (!asked.has(fold)) {
      asked.set(fold, new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = link.href.replace(/html$/, "js");
        script.onload = done;
        script.onerror = () => {
          link.parentElement.textContent = `${link.getAttribute("href")} cannot be read: its folder belongs beside this page.`;
          failed(new Error(script.src));
        };
        document.head.append(script);
      }));
    }
    return asked.get(fold);
  };

  const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
  const filter = (fold) => {
    const rows = [...fold.querySelectorAll("tbody tr")].map((node) => ({ node, text: node.textContent.toLowerCase() }));
    const bar = document.createElement("p");
    bar.className = "filter";
    bar.innerHTML = '<label>Only cases with <input type="search"></label> <span role="status"></span>';
    const [input, status] = bar.querySelectorAll("input, span");
    input.addEventListener("input", () => {
      const wanted = words(input.value);
      for (const { node, text } of rows) node.hidden = !wanted.every((word) => text.includes(word));
      status.textContent = wanted.length ? `${rows.filter(({ node }) => !node.hidden).length} of ${rows.length}` : "";
    });
    fold.querySelector(".scroll").before(bar);
  };

  // Folded content is in a template, outside the document, until it is opened.
  const fill = (fold) => {
    const folded = fold.querySelector(":scope > template");
    if (!folded) return;
    folded.replaceWith(folded.content);
    if (fold.classList.contains("cases")) filter(fold);
  };
  const unfold = (fold) => { fill(fold); fold.open = true; };
  const open = (fold) => load(fold).then(() => fill(fold), () => {}); // a section that cannot be read says so itself
  document.addEventListener("toggle", ({ target }) => {
    if (!target.open || target.localName !== "details") return;
    fill(target);
    if (parts.includes(target)) open(target);
  }, true);
  addEventListener("beforeprint", () => {
    for (let folds; (folds = document.querySelectorAll("details:not([open])")).length; ) folds.forEach(unfold);
  });

  const find = document.getElementById("find");
  const found = document.getElementById("found");
  const steps = [document.getElementById("previous"), document.getElementById("next")];
  let entries = null; // searchable entries in page order: the node, its text, its folds
  let matches = [];
  let at = -1;
  const collect = (part, folds, into) => {
    for (const node of part.querySelectorAll("[data-find], template")) {
      if (node.localName === "template") collect(node.content, [...folds, node.parentElement], into);
      else into.push({ node, folds, text: node.textContent.toLowerCase() });
    }
    return into;
  };
  const say = () => {
    const missing = parts.filter((fold) => fold.querySelector(":scope > .apart")).length;
    const count = at < 0 ? `${matches.length} found` : `${at + 1} of ${matches.length}`;
    found.textContent = find.value.trim() ? count + (missing ? `; ${missing} sections cannot be read` : "") : "";
    for (const step of steps) step.hidden = matches.length === 0;
  };
  const leave = () => {
    for (const node of document.querySelectorAll(".hit")) { node.classList.remove("hit"); node.removeAttribute("aria-current"); }
  };
  const show = ({ node, folds }) => {
    leave();
    folds.forEach(fill);
    for (let fold = node.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    node.hidden = false; // a filter may have hidden it
    node.classList.add("hit");
    node.setAttribute("aria-current", "true");
    node.scrollIntoView({ block: "center", behavior: "instant" });
  };
  const go = (step) => {
    if (!matches.length) return;
    at = at < 0 && step < 0 ? matches.length - 1 : (at + step + matches.length) % matches.length;
    show(matches[at]);
    say();
  };
  // Calls back at once if all sections are here, otherwise as soon as they are.
  const search = (then = () => {}) => {
    if (!entries) {
      const waiting = parts.filter(linkOf);
      if (waiting.length) {
        found.textContent = "Loading all sections";
        Promise.allSettled(waiting.map(load)).then(() => search(then));
        return;
      }
      entries = collect(document, [], []);
    }
    const wanted = words(find.value);
    matches = wanted.length ? entries.filter(({ text }) => wanted.every((word) => text.includes(word))) : [];
    at = -1;
    leave();
    say();
    then();
  };
  const step = (by) => (entries ? go(by) : search(() => go(by)));
  find.addEventListener("input", () => search());
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-go]"); // to an entry that may be folded
    if (!link) return;
    event.preventDefault();
    find.value = link.dataset.go;
    search(() => go(1));
  });
  find.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); step(event.shiftKey ? -1 : 1); }
  });
  steps.forEach((button, place) => button.addEventListener("click", () => step(place ? 1 : -1)));

  // #topic-zero opens the section, #topic-zero/zero1-torch-dp2-fp32 shows a case in it.
  const arrive = () => {
    const id = location.hash.slice(1);
    const fold = document.getElementById(id.split("/")[0])?.querySelector(":scope > details.part");
    if (!fold) return;
    fold.open = true;
    open(fold).then(() => {
      const entry = collect(fold, [], []).find(({ node }) => node.id === id);
      if (entry) show(entry);
    });
  };
  addEventListener("hashchange", arrive);
  arrive();
})();
