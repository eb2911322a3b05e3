"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const text = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => Number(a) - Number(b) || a.localeCompare(b);
      const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * order(text(a), text(b)));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre");
    getSelection().selectAllChildren(text);  // what is left to who may not write the clipboard
    await navigator.clipboard.writeText(text.textContent).then(
      () => { button.textContent = "Copied"; },
      () => { button.textContent = "Selected: press Ctrl-C"; });
  });
}
