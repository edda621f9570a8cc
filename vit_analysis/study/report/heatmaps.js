// Heat maps: each canvas holds one dot per pair of layers, first layer at the bottom left, and the style makes it large.
// Pointer and arrow keys choose a cell; the output below says its layers, its value and its interval. A cross of two lines
// marks the same layers in the other maps of the figure: those of the same name where the model is the same, else of the same depth.
{
// 256 colours from 0 to 1, as in the pictures. Undefined cells are grey.
const MAGMA =
  "00000300000400000601000701010901010b02020d02020f03031104031304041505041706051907051b08061d09071f" +
  "0a07220b08240c09260d0a280e0a2a0f0b2c100c2f110c31120d33140d35150e38160e3a170f3c180f3f1a10411b1044" +
  "1c10461e10491f114b20114d2211502311522511552611572811592a115c2b115e2d10602f1062301065321067341068" +
  "350f6a370f6c390f6e3b0f6f3c0f713e0f72400f73420f74430f75450f76470f774810784a10794b10794d117a4f117b" +
  "50127b52127c53137c55137d57147d58157e5a157e5b167e5d177e5e177f60187f61187f63197f651a80661a80681b80" +
  "691c806b1c806c1d806e1e816f1e81711f81731f817420817621817721817922817a22817c23817e24817f2481812581" +
  "8225818426818526818727818928818a28818c29808d29808f2a80912a80922b80942b80952c80972c7f992d7f9a2d7f" +
  "9c2e7f9e2e7e9f2f7ea12f7ea3307ea4307da6317da7317da9327cab337cac337bae347bb0347bb1357ab3357ab53679" +
  "b63679b83778b93778bb3877bd3977be3976c03a75c23a75c33b74c53c74c63c73c83d72ca3e72cb3e71cd3f70ce4070" +
  "d0416fd1426ed3426dd4436dd6446cd7456bd9466ada4769dc4869dd4968de4a67e04b66e14c66e24d65e44e64e55063" +
  "e65162e75262e85461ea5560eb5660ec585fed595fee5b5eee5d5def5e5df0605df1615cf2635cf3655cf3675bf4685b" +
  "f56a5bf56c5bf66e5bf6705bf7715bf7735cf8755cf8775cf9795cf97b5df97d5dfa7f5efa805efa825ffb8460fb8660" +
  "fb8861fb8a62fc8c63fc8e63fc9064fc9265fc9366fd9567fd9768fd9969fd9b6afd9d6bfd9f6cfda16efda26ffda470" +
  "fea671fea873feaa74feac75feae76feaf78feb179feb37bfeb57cfeb77dfeb97ffebb80febc82febe83fec085fec286" +
  "fec488fec689fec78bfec98dfecb8efdcd90fdcf92fdd193fdd295fdd497fdd698fdd89afdda9cfddc9dfddd9ffddfa1" +
  "fde1a3fce3a5fce5a6fce6a8fce8aafceaacfcecaefceeb0fcf0b1fcf1b3fcf3b5fcf5b7fbf7b9fbf9bbfbfabdfbfcbf";
const GREY = "bfbfbf";
const UNIT = 1000, UNDEFINED = -32768;

function numbers(base64) {
  const bytes = Uint8Array.from(atob(base64), sign => sign.charCodeAt(0));
  return Array.from(new Int16Array(bytes.buffer), whole => whole === UNDEFINED ? NaN : whole / UNIT);
}

function colour(value) {
  const step = Math.min(255, Math.max(0, Math.floor(256 * value)));
  const hex = Number.isNaN(value) ? GREY : MAGMA.slice(6 * step, 6 * step + 6);
  return [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16));
}

function paint(canvas, view) {
  const width = canvas.width = view.columns.layer.length, height = canvas.height = view.rows.layer.length;
  const picture = new ImageData(width, height);
  view.cka.forEach((value, cell) => {
    const row = height - 1 - Math.floor(cell / width);
    picture.data.set([...colour(value), 255], 4 * (row * width + cell % width));
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function digits(value) {
  return Number.isNaN(value) ? "\u2013" : value.toFixed(3).replace("-", "\u2212");
}

function told(view, row, column) {
  const cell = row * view.columns.layer.length + column;
  const place = (side, at) => `${side.name} ${side.layer[at]} (depth ${side.depth[at].toFixed(2)})`;
  const value = Number.isNaN(view.cka[cell])
    ? `${view.measure} undefined: a layer is constant over the images`
    : `${view.measure} ${digits(view.cka[cell])} [${digits(view.low[cell])}, ${digits(view.high[cell])}]`;
  return [value, `up: ${place(view.rows, row)}`, `right: ${place(view.columns, column)}`];
}

function nearest(depths, depth) {
  return depths.reduce((best, own, at) => Math.abs(own - depth) < Math.abs(depths[best] - depth) ? at : best, 0);
}

// The layer on one axis that stands for a layer on an axis of another map.
function same(axis, other, at) {
  const named = axis.model === other.model ? axis.layer.indexOf(other.layer[at]) : -1;
  return named >= 0 ? named : nearest(axis.depth, other.depth[at]);
}

function element(name, classes, place) {
  const made = document.createElement(name);
  made.className = classes;
  Object.assign(made.style, place);
  return made;
}

// Short ticks where blocks begin, longer ones with numbers at quarters of the depth, lines across where stages begin.
function ruled(panel) {
  const {figure, view} = panel;
  for (const [axis, side, along, line] of [[view.rows, "left", "bottom", "row"], [view.columns, "below", "left", "column"]]) {
    const count = axis.layer.length, at = place => ({[along]: `${100 * place / count}%`});
    const marks = axis.blocks.map(place => element("i", "block", at(place)));
    for (const depth of [0, 0.25, 0.5, 0.75, 1]) {
      const place = nearest(axis.depth, depth) + 0.5, label = element("span", "", at(place));
      label.textContent = String(depth);
      marks.push(element("i", "depth", at(place)), label);
    }
    figure.querySelector(`.ticks.${side}`).replaceChildren(...marks);
    figure.querySelectorAll(`.stage.${line}`).forEach(old => old.remove());
    figure.querySelector(".cells").append(...axis.stages.map(place => element("i", `stage ${line}`, at(place))));
  }
}

class Panel {
  constructor(figure) {
    this.figure = figure;
    this.canvas = figure.querySelector("canvas");
    this.cursor = figure.querySelector(".cursor");
    this.output = figure.querySelector("output");
    this.hairs = ["row", "column"].map(line => element("i", `hair ${line}`, {}));
    this.cursor.after(...this.hairs);
    const data = JSON.parse(figure.querySelector("script").textContent);
    this.caption = data.caption;
    this.views = data.views;
    this.row = this.column = 0;
    this.show(0);
  }

  show(number) {
    const before = this.view;
    this.view = this.views[number];
    for (const side of ["cka", "low", "high"]) {
      if (typeof this.view[side] === "string") this.view[side] = numbers(this.view[side]);
    }
    if (before) {
      this.row = same(this.view.rows, before.rows, this.row);
      this.column = same(this.view.columns, before.columns, this.column);
      this.canvas.setAttribute("aria-label", `${this.caption}, ${this.view.words}. Arrow keys move from cell to cell.`);
    }
    paint(this.canvas, this.view);
    ruled(this);
  }

  get height() { return this.view.rows.layer.length; }
  get width() { return this.view.columns.layer.length; }

  // Mark a cell; the one that was chosen by hand is framed, those that follow it have lines alone and are not read aloud.
  mark(row, column, chosen) {
    this.row = Math.min(this.height - 1, Math.max(0, row));
    this.column = Math.min(this.width - 1, Math.max(0, column));
    Object.assign(this.cursor.style, {
      display: chosen ? "block" : "none",
      left: `${100 * this.column / this.width}%`, bottom: `${100 * this.row / this.height}%`,
      width: `${100 / this.width}%`, height: `${100 / this.height}%`,
    });
    Object.assign(this.hairs[0].style, {display: "block", bottom: `${100 * (this.row + 0.5) / this.height}%`});
    Object.assign(this.hairs[1].style, {display: "block", left: `${100 * (this.column + 0.5) / this.width}%`});
    this.output.setAttribute("aria-live", chosen ? "polite" : "off");
    this.output.replaceChildren(...told(this.view, this.row, this.column).map(line => {
      const span = document.createElement("span");
      span.textContent = line;
      return span;
    }));
  }

  csv() {
    const {rows, columns, measure, cka, low, high} = this.view, cells = [];
    cka.forEach((value, cell) => {
      const row = Math.floor(cell / this.width), column = cell % this.width;
      cells.push([rows.model, rows.layer[row], rows.depth[row], columns.model, columns.layer[column], columns.depth[column],
        measure, value, low[cell], high[cell]]);
    });
    return cells;
  }
}

function live(group) {
  const panels = [...group.querySelectorAll("figure.map")].map(figure => new Panel(figure));
  const switched = group.querySelector(".view");
  let last = null;

  function choose(panel, row, column) {
    last = panel;
    panel.mark(row, column, true);
    for (const other of panels) {
      if (other === panel) continue;
      const [rows, columns] = [same(other.view.rows, panel.view.rows, panel.row), same(other.view.columns, panel.view.columns, panel.column)];
      other.mark(rows, columns, false);
    }
  }

  for (const panel of panels) {
    const {canvas} = panel;
    const point = event => {
      const box = canvas.getBoundingClientRect();
      const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
      choose(panel, panel.height - 1 - Math.floor(down * panel.height), Math.floor(across * panel.width));
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("focus", () => choose(panel, panel.row, panel.column));
    canvas.addEventListener("keydown", event => {
      const {row, column} = panel, far = event.shiftKey ? 10 : 1;
      const to = {
        ArrowUp: [row + far, column], ArrowDown: [row - far, column],
        ArrowRight: [row, column + far], ArrowLeft: [row, column - far],
        Home: [row, 0], End: [row, panel.width - 1], PageUp: [panel.height - 1, column], PageDown: [0, column],
      }[event.key];
      if (!to || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      choose(panel, ...to);
    });
  }

  switched?.addEventListener("input", () => {
    panels.forEach(panel => panel.show(Number(switched.value)));
    group.querySelector(".scale .measure").textContent = panels[0].view.measure;
    if (last) choose(last, last.row, last.column);
  });
  group.querySelector(".csv").addEventListener("click", () => {
    const columns = ["model", "layer", "depth", "other_model", "other_layer", "other_depth", "measure", "value", "low", "high"];
    const place = group.closest(".place").id;
    download(fileName(place, panels[0].view.words), csv(columns, panels.flatMap(panel => panel.csv())));
  });
}

document.querySelectorAll(".group").forEach(live);
}
