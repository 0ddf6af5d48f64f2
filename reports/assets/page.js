// The page is complete without this script; it adds the search box, the theme button, and opens what is folded for print.
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

  const find = document.getElementById("find");
  const found = document.getElementById("found");
  const items = [...document.querySelectorAll("[data-find]")].map((node) => [node, node.textContent.toLowerCase()]);
  const folds = [...document.querySelectorAll("details.cases")];
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const [node, text] of items) {
      const hit = words.every((word) => text.includes(word));
      node.classList.toggle("out", !hit);
      count += hit;
    }
    for (const fold of folds) fold.open = words.length > 0 && fold.querySelector("[data-find]:not(.out)") !== null;
    found.textContent = words.length ? `${count} found` : "";
  });

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));
})();
