// Sorts a table by the column whose title is clicked; a second click turns the order around.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => title.querySelector("button").addEventListener("click", () => {
    const down = title.getAttribute("aria-sort") === "ascending";
    titles.forEach((other) => other.removeAttribute("aria-sort"));
    title.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [Number(a), Number(b)];
      return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
    };
    const filled = [...table.tBodies[0].rows].filter((row) => key(row) !== "");
    const empty = [...table.tBodies[0].rows].filter((row) => key(row) === "");
    filled.sort((a, b) => (down ? -1 : 1) * compare(key(a), key(b)));
    table.tBodies[0].append(...filled, ...empty);
  }));
}
