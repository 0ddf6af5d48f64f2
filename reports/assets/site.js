// The filter of a page's tables: it hides the rows that lack a word. Without JavaScript all rows are there.
"use strict";
const tools = document.getElementById("tools");
if (tools) {
  const field = document.getElementById("filter");
  const found = document.getElementById("found");
  const rows = [...document.querySelectorAll("main tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  tools.hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, place) => {
      row.hidden = !words.every((word) => texts[place].includes(word));
      count += row.hidden ? 0 : 1;
    });
    for (const section of document.querySelectorAll("main section")) {
      section.hidden = !section.querySelector("tbody tr:not([hidden])");
    }
    found.textContent = words.length ? `${count} of ${rows.length} rows` : "";
  });
}
