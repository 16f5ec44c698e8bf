// Makes the tables sort: a button in each heading, numbers by value, what has no value last either way.
(() => {
  "use strict";

  const compare = (a, b, numeric) => (numeric ? Number(a) - Number(b) : a < b ? -1 : Number(a > b));

  const order = (table, index, descending) => {
    const body = table.tBodies[0];
    const items = [...body.rows].map((row) => ({
      row,
      key: row.cells[index].getAttribute("data-value"),
      place: Number(row.getAttribute("data-place")),
    }));
    const numeric = items.every(({ key }) => key === null || !Number.isNaN(Number(key)));
    items.sort((a, b) => {
      if (a.key === b.key) {
        return a.place - b.place;
      }
      if (a.key === null || b.key === null) {
        return a.key === null ? 1 : -1;
      }
      return (descending ? -1 : 1) * compare(a.key, b.key, numeric) || a.place - b.place;
    });
    body.append(...items.map(({ row }) => row));
  };

  const enhance = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    [...table.tBodies[0].rows].forEach((row, place) => row.setAttribute("data-place", String(place)));
    heads.forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        order(table, index, descending);
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        table.setAttribute("data-sorted", "");
      });
    });
  };

  document.querySelectorAll("table.sortable").forEach(enhance);
})();
