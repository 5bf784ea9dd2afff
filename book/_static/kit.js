/* Three things that a style sheet cannot do. Without scripts the book is the same but for them.
   Tables of results can be sorted: each column head becomes a button. Paper is white: in print, dark mode is off. And what the
   search shows of a page is its text, without the buttons above it (".ipynb", ".pdf") and the list of its sections. */
(() => {
  "use strict";
  const number = (text) => (/^[-+−]?[\d.,\s]+%?$/.test(text) ? parseFloat(text.replace("−", "-").replace(/[,\s%]/g, "")) : NaN);

  function compare(column, up) {
    return (a, b) => {
      const [x, y] = [a, b].map((row) => row.cells[column].textContent.trim());
      const missing = (x === "–") - (y === "–"); // a dash is no value: always last
      if (missing) return missing;
      const [p, q] = [number(x), number(y)];
      const order = Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q;
      return up ? order : -order;
    };
  }

  function sortBy(table, head, column) {
    // Numbers begin with the largest, texts with A; the third click brings back the order of the notebook.
    const rows = [...table.tBodies[0].rows];
    rows.forEach((row, place) => (row.dataset.place ??= place));
    const numeric = rows.some((row) => !Number.isNaN(number(row.cells[column].textContent.trim())));
    const ways = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
    const way = ways[(ways.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
    table.querySelectorAll("thead th").forEach((one) => one.removeAttribute("aria-sort"));
    if (way) head.setAttribute("aria-sort", way);
    rows.sort(way ? compare(column, way === "ascending") : (a, b) => a.dataset.place - b.dataset.place);
    table.tBodies[0].append(...rows);
  }

  document.querySelectorAll("table.kit-table").forEach((table) => {
    if (!table.tHead || table.tBodies.length !== 1 || table.tBodies[0].rows.length < 3) return;
    if (table.querySelector("[colspan], [rowspan]")) return;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "kit-sort";
      button.append(...head.childNodes);
      button.title = "Sort by this column";
      button.addEventListener("click", () => sortBy(table, head, column));
      head.append(button);
    });
  });

  if (typeof Search !== "undefined") {
    const textOf = Search.htmlToText;
    Search.htmlToText = (html, anchor) => {
      const page = new DOMParser().parseFromString(html, "text/html");
      page.querySelectorAll(".bd-header-article, #jb-print-docs-body").forEach((one) => one.remove());
      return textOf(page.documentElement.outerHTML, anchor).replace(/\s+/g, " ").trim();
    };
  }

  const root = document.documentElement;
  let screen = root.dataset.theme;
  matchMedia("print").addEventListener("change", ({ matches }) => {
    if (matches) screen = root.dataset.theme;
    root.dataset.theme = matches ? "light" : screen;
  });
})();
