"use strict";
// Sorts and filters the table of scans. Without this script the page is a plain table.
(() => {
  const at = (id) => document.getElementById(id);
  const body = at("scans").tBodies[0];
  const tools = document.querySelector(".tools");
  const finding = at("finding");
  at("place-of-finding").replaceWith(finding);
  finding.hidden = tools.hidden = false;

  const SEVERITY = ["failed", "refused", "done", "skipped"];
  const number = (text) => (text ? Number(text) : null);
  const scans = Array.from(body.rows, (row, place) => {
    const verdict = row.classList[1];
    const found = new Map();
    for (const entry of (row.dataset.found || "").split(" ").filter(Boolean)) {
      const [label, figure] = entry.split("=");
      found.set(label, Number(figure));
    }
    return { row, place, verdict, found, figure: number(row.dataset.figure), words: null };
  });
  const collator = new Intl.Collator("en", { numeric: true });
  const KEYS = {
    place: (scan) => scan.place,
    scan: (scan) => scan.row.cells[2].textContent,
    verdict: (scan) => SEVERITY.indexOf(scan.verdict),
    figure: (scan) => (scan.found.has(finding.value) ? scan.found.get(finding.value)
      : Number(finding.value) >= 0 && finding.value ? null : scan.figure),
    voxels: (scan) => number(scan.row.dataset.voxels),
    remarks: (scan) => scan.row.cells[6].textContent || null,
    seconds: (scan) => number(scan.row.cells[7].textContent),
  };
  let order = { by: "place", falling: false };

  function compare(a, b) {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    const rising = typeof a.key === "string" ? collator.compare(a.key, b.key) : a.key - b.key;
    return order.falling ? -rising : rising;
  }

  function sort() {
    const keyed = scans.map((scan) => ({ scan, key: KEYS[order.by](scan) }));
    keyed.sort((a, b) => compare(a, b) || a.scan.place - b.scan.place);
    const table = body.parentNode;
    body.remove(); // rows that move while they are shown cost several times as much
    for (const item of keyed) body.append(item.scan.row);
    table.append(body);
  }

  const HAS = {
    "": () => true,
    found: (scan) => scan.found.size > 0,
    nothing: (scan) => scan.verdict === "done" && scan.found.size === 0,
  };

  function filter() {
    const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = HAS[finding.value] || ((scan) => scan.found.has(finding.value));
    const verdict = document.querySelector("[name=show]:checked").id.slice("show-".length);
    const counts = { all: 0, done: 0, refused: 0, failed: 0, skipped: 0 };
    let shown = 0;
    for (const scan of scans) {
      if (words.length && scan.words === null) scan.words = scan.row.textContent.toLowerCase();
      const fits = has(scan) && words.every((word) => scan.words.includes(word));
      if (fits) {
        counts.all += 1;
        counts[scan.verdict] += 1;
      }
      const isShown = fits && (verdict === "all" || verdict === scan.verdict);
      if (scan.row.hidden === isShown) scan.row.hidden = !isShown;
      shown += isShown;
    }
    for (const [name, count] of Object.entries(counts)) {
      document.querySelector(`label[for=show-${name}] b`).textContent = count;
    }
    at("shown").textContent = `${shown} of ${scans.length} scans shown`;
    at("none").hidden = shown > 0;
    at("clear").disabled = !words.length && !finding.value && verdict === "all";
  }

  for (const head of document.querySelectorAll("th[data-by]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const again = order.by === head.dataset.by;
      const falling = again ? !order.falling : head.dataset.first === "descending";
      order = { by: head.dataset.by, falling };
      document.querySelector("th[aria-sort]")?.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      sort();
    });
  }
  at("words").addEventListener("input", filter);
  finding.addEventListener("change", () => {
    filter();
    if (order.by === "figure") sort();
  });
  document.querySelector(".counts").addEventListener("change", filter);
  at("clear").addEventListener("click", () => {
    at("words").value = finding.value = "";
    at("show-all").checked = true;
    filter();
    if (order.by === "figure") sort();
    at("words").focus();
  });
  filter();
})();
