// The registry of published numbers: its columns can be sorted and its rows filtered. Without this
// script it is a plain table, in the order of its file.
(() => {
  const element = (name, values = {}, ...inside) => {
    const made = Object.assign(document.createElement(name), values);
    made.append(...inside);
    return made;
  };
  const number = (text) => parseFloat(/^[≠ ]*([+-]?[\d,]*\.?\d+)/.exec(text)?.[1].replaceAll(",", ""));

  // By number where both begin with one, by text else; what a source does not say comes last.
  const compare = (one, other) => {
    const [x, y] = [number(one), number(other)];
    return Number.isNaN(x) || Number.isNaN(y)
      ? Number.isNaN(x) - Number.isNaN(y) || one.localeCompare(other) : x - y;
  };

  const dress = (box) => {
    const table = box.querySelector("table");
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const text = (row, k) => [...row.cells[k].childNodes]
      .filter((node) => node.nodeName !== "SMALL").map((node) => node.textContent).join("");
    const contradicted = heads.findIndex((head) => head.hasAttribute("data-marked"));
    const count = element("span", { className: "eqr-count" });
    count.setAttribute("role", "status");
    const find = element("input", { type: "search" });
    const marked = element("input", { type: "checkbox" });
    const choices = heads.flatMap((head, k) => {
      if (!head.hasAttribute("data-filter")) return [];
      const values = [...new Set(rows.map((row) => text(row, k)))].sort(compare);
      const options = values.map((value) => element("option", { value, textContent: value }));
      const select = element("select", {}, element("option", { value: "", textContent: "all" }));
      select.append(...options);
      return [{ k, select, label: element("label", {}, `${head.textContent} `, select) }];
    });

    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const whole = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => whole.includes(word))
          || (marked.checked && !row.cells[contradicted].querySelector("a"))
          || choices.some(({ k, select }) => select.value && text(row, k) !== select.value);
      }
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    };

    const sort = (k) => {
      const down = heads[k].getAttribute("aria-sort") === "ascending";
      for (const head of heads) head.removeAttribute("aria-sort");
      heads[k].setAttribute("aria-sort", down ? "descending" : "ascending");
      const blank = (row) => text(row, k) === "–";
      const order = [...rows].sort((one, other) => blank(one) - blank(other)
        || (down ? -1 : 1) * compare(text(one, k), text(other, k)));
      body.append(...order);
    };

    heads.forEach((head, k) => {
      const button = element("button", { type: "button", textContent: head.textContent });
      button.addEventListener("click", () => sort(k));
      head.replaceChildren(button);
    });
    // A link to another row shows it, whatever is filtered.
    table.addEventListener("click", (event) => {
      const row = document.getElementById(event.target.closest("a")?.hash.slice(1) ?? "");
      if (row) row.hidden = false;
    });
    const form = element("form", { className: "eqr-filters" },
      element("label", {}, "find ", find), ...choices.map(({ label }) => label),
      element("label", {}, marked, " contradicted only"), count);
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    box.prepend(form);
    filter();
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".eqr-registry").forEach(dress);
  });
})();
