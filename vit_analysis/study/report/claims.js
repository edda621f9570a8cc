// The table of claims: filtered by words, verdict and difference, sorted by any column. Without a script it is a plain table.
{
  const section = document.querySelector("#verdicts"), body = section.querySelector("tbody");
  const rows = [...body.rows], [words, verdict, difference] = [".words", ".of-verdict", ".of-difference"].map(name => section.querySelector(name));
  const found = section.querySelector(".found");
  const texts = rows.map(row => row.textContent.toLowerCase());

  function filter() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, number) => {
      row.hidden = !wanted.every(word => texts[number].includes(word))
        || (verdict.value !== "" && row.dataset.verdict !== verdict.value)
        || (difference.value !== "" && row.dataset.difference !== difference.value);
    });
    const shown = rows.filter(row => !row.hidden).length;
    found.textContent = shown === rows.length ? `${shown} claims` : `${shown} of ${rows.length} claims`;
  }

  const number = text => text === "" ? NaN : Number(text.replace("inf", "Infinity"));
  const keys = {
    value: row => number(row.dataset.value), p: row => number(row.dataset.p), verdict: row => number(row.dataset.rank),
  };

  function order(head, column) {
    const falling = head.getAttribute("aria-sort") === "ascending";
    section.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = keys[head.dataset.key] || (row => row.cells[column].textContent.trim());
    const sign = falling ? -1 : 1;
    const compare = (a, b) => {
      const [left, right] = [key(a), key(b)];
      if (typeof left === "string") return sign * left.localeCompare(right, "en", {numeric: true});
      return Number.isNaN(left) - Number.isNaN(right) || sign * (left - right) || 0; // what has no number comes last
    };
    body.append(...[...body.rows].sort(compare));
  }

  [...section.querySelectorAll("thead th")].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => order(head, column));
  });
  [words, verdict, difference].forEach(control => control.addEventListener("input", filter));
  document.querySelectorAll(".choose").forEach(link => link.addEventListener("click", () => {
    words.value = difference.value = "";
    verdict.value = link.dataset.verdict;
    filter();
  }));
  // A link to a claim that the filter hides shows it again.
  addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1))) || document.getElementById(location.hash.slice(1));
    if (!target || !target.hidden) return;
    words.value = verdict.value = difference.value = "";
    filter();
    target.scrollIntoView();
  });
  section.querySelector(".csv").addEventListener("click", () => {
    const {columns, rows: cells} = JSON.parse(section.querySelector(".claims-data").textContent);
    download("claims.csv", csv(columns, cells));
  });
  filter();
}
