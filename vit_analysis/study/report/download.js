// Tables as CSV files (RFC 4180), made of what the page holds. Texts that a spreadsheet would take for formulas are quoted for it.
function csv(columns, rows) {
  const cell = value => {
    let text = value === null || value === undefined || Number.isNaN(value) ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map(row => row.map(cell).join(",") + "\r\n").join("");
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function fileName(...parts) {
  return `${parts.join("_").replace(/[^\w.-]+/g, "_").slice(0, 100)}.csv`;
}
