/**
 * On the node that learns a photo: a square to be moved and sized on the photo by hand. It is kept in the node's own
 * widget "square", so that the workflow saves it and a script can say it; empty, the crop is found as "crop" says.
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { allNodes, onChange, sourceOf, valueOf } from "./graph.js";
import { dropSection, hasSection, make, section } from "./panel.js";
import { say } from "./say.js";

const LEARNER = "E4TPersonalize";
const SECTION = "crop";
const BUTTON = "crop editor";
const WIDGET = "square";
/** Pixels of a square's side, at least: as SMALLEST_SIDE in e4t_core/crop.py. */
const SMALLEST = 8;
/** What one notch of the wheel and one press of + do to the side, and one arrow key to the place, as shares. */
const ZOOM = 1.08;
const STEP = 0.02;
const NUMBERS = /^\s*(\d{1,6})\s*[,; ]\s*(\d{1,6})\s*[,; ]\s*(\d{1,6})\s*$/;
const ANNOTATED = /^(.*?)(?: \[(input|output|temp)\])?$/;

/** The editors that are open, by node. */
const editors = new WeakMap();

/**
 * Where the browser can get the photo of a node.
 * @returns {string} its address; empty where it is known to the server only.
 */
function photoOf(node) {
  const source = sourceOf(node, node.inputs?.find((input) => input.name === "image"));
  if (!source) return "";
  const value = source.widget?.value ?? valueOf(source.node, "image");
  if (typeof value === "string" && value) {
    const [, path, type] = ANNOTATED.exec(value);
    const parts = path.split("/");
    return viewed({ filename: parts.pop(), subfolder: parts.join("/"), type: type ?? "input" });
  }
  // A node that shows its picture after a run.
  return source.node.imgs?.[0]?.src ?? "";
}

function viewed(file) {
  return api.apiURL(`/view?${new URLSearchParams(file)}`);
}

/** One node's editor. */
class Editor {
  constructor(node) {
    this.node = node;
    this.picture = make("img", "e4t-photo");
    this.picture.draggable = false;
    this.picture.alt = "";
    this.frame = make("div", "e4t-square");
    this.stage = make("div", "e4t-stage", this.picture, this.frame);
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "group");
    this.stage.title = say("Drag to move, wheel or + and - to size");
    // Nodes 2.0 leaves the wheel to what has the focus and this mark.
    this.stage.dataset.captureWheel = "true";
    this.told = make("span", "e4t-count");
    this.told.setAttribute("role", "status");
    this.automatic = make("button", "e4t-copy", say("Automatic"));
    this.automatic.type = "button";
    this.automatic.title = say("Let the node choose the crop again");
    this.automatic.addEventListener("click", () => this.keep(null));
    section(node, SECTION).replaceChildren(this.stage, make("div", "e4t-head", this.told, this.automatic));
    this.listen();
    this.update();
  }

  listen() {
    const { stage } = this;
    this.picture.addEventListener("load", () => this.draw());
    this.picture.addEventListener("error", () => this.draw());
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.size) return;
      event.stopPropagation();
      event.preventDefault();
      stage.focus({ preventScroll: true });
      stage.setPointerCapture(event.pointerId);
      const { left, top, side } = this.shown();
      const at = this.pixel(event);
      const isInside = at.x >= left && at.y >= top && at.x < left + side && at.y < top + side;
      // Outside of it, the square comes to the pointer.
      this.grip = isInside ? { x: at.x - left, y: at.y - top } : { x: side / 2, y: side / 2 };
      this.moveTo(event);
    });
    stage.addEventListener("pointermove", (event) => {
      if (!this.grip) return;
      event.stopPropagation();
      this.moveTo(event);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, () => {
        if (this.grip) this.tell();
        this.grip = null;
      });
    }
    stage.addEventListener(
      "wheel",
      (event) => {
        if (!this.size || !event.deltaY) return;
        event.stopPropagation();
        event.preventDefault();
        this.resize(event.deltaY < 0 ? 1 / ZOOM : ZOOM);
        this.tell();
      },
      { passive: false },
    );
    stage.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const sizes = { "+": ZOOM, "=": ZOOM, "-": 1 / ZOOM };
      if (!this.size || (!moves[event.key] && !sizes[event.key])) return;
      // Neither the canvas nor the page acts on it.
      event.stopPropagation();
      event.preventDefault();
      if (sizes[event.key]) this.resize(sizes[event.key]);
      else this.move(...moves[event.key]);
      this.tell();
    });
  }

  /** The photo's width and height; nothing while it is not there. */
  get size() {
    const { naturalWidth: width, naturalHeight: height } = this.picture;
    return Math.min(width, height) >= SMALLEST ? { width, height } : null;
  }

  /** What the widget holds, or nothing. */
  get drawn() {
    const found = NUMBERS.exec(valueOf(this.node, WIDGET) ?? "");
    return found && { left: Number(found[1]), top: Number(found[2]), side: Number(found[3]) };
  }

  /** The square that is shown: the one that was drawn, or the middle. */
  shown() {
    const { width, height } = this.size;
    const side = Math.min(width, height);
    return this.drawn ?? { left: Math.floor((width - side) / 2), top: Math.floor((height - side) / 2), side };
  }

  /** Where in the photo the pointer is. */
  pixel(event) {
    const box = this.picture.getBoundingClientRect();
    const { width, height } = this.size;
    return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height };
  }

  moveTo(event) {
    const at = this.pixel(event);
    this.keep({ ...this.shown(), left: at.x - this.grip.x, top: at.y - this.grip.y });
  }

  move(right, down) {
    const { left, top, side } = this.shown();
    const step = Math.max(1, Math.round(STEP * side));
    this.keep({ left: left + right * step, top: top + down * step, side });
  }

  /** Sizes the square about its middle. */
  resize(factor) {
    const { left, top, side } = this.shown();
    const wanted = factor > 1 ? Math.ceil(side * factor) : Math.floor(side * factor);
    const { width, height } = this.size;
    const fitting = Math.max(SMALLEST, Math.min(wanted, width, height));
    this.keep({ left: left + (side - fitting) / 2, top: top + (side - fitting) / 2, side: fitting });
  }

  /** Puts a square into the widget, as far as it lies in the photo; nothing: the node chooses again. */
  keep(square) {
    const widget = this.node.widgets.find((one) => one.name === WIDGET);
    let text = "";
    if (square) {
      const { width, height } = this.size;
      const side = Math.max(SMALLEST, Math.min(Math.round(square.side), width, height));
      const within = (at, end) => Math.max(0, Math.min(Math.round(at), end - side));
      text = `${within(square.left, width)}, ${within(square.top, height)}, ${side}`;
    }
    if (widget.value !== text) {
      widget.value = text;
      widget.callback?.(text);
      app.canvas?.setDirty(true, true);
    }
    this.draw();
  }

  /** Has the workflow noticed as changed: ComfyUI looks when a key or the mouse is let go, and not after the wheel. */
  tell() {
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  }

  /** Follows a photo or a value that was changed elsewhere. */
  update() {
    const address = photoOf(this.node);
    if (this.address !== address) {
      this.address = address;
      if (address) this.picture.src = address;
      else this.picture.removeAttribute("src");
    }
    this.draw();
  }

  draw() {
    const { size } = this;
    const square = size && this.shown();
    const isDrawn = Boolean(this.drawn);
    this.stage.hidden = !size;
    this.automatic.hidden = !valueOf(this.node, WIDGET);
    this.frame.dataset.drawn = isDrawn;
    if (!size) return this.write(say("Wire the photo in from Load Image, or run once a node that shows it."));
    const { width, height } = size;
    const share = (part, of) => `${(100 * part) / of}%`;
    this.frame.style.left = share(square.left, width);
    this.frame.style.top = share(square.top, height);
    this.frame.style.width = share(square.side, width);
    this.frame.style.height = share(square.side, height);
    const fits = square.left + square.side <= width && square.top + square.side <= height;
    const known = { side: square.side, width, height };
    if (!isDrawn) this.write(say("Drag or turn the wheel to draw the crop. Until then the node chooses."));
    else if (fits) this.write(say("{side} × {side} of {width} × {height} pixels", known));
    else this.write(say("{side} × {side} of {width} × {height} pixels: it does not lie in this photo.", known));
    return undefined;
  }

  write(text) {
    if (this.told.textContent === text) return;
    this.told.textContent = text;
    this.stage.setAttribute("aria-label", say("Crop: {text}", { text }));
  }
}

/** Opens a node's editor, or closes it. */
function toggle(node) {
  if (!hasSection(node, SECTION)) {
    editors.set(node, new Editor(node));
    return;
  }
  editors.delete(node);
  dropSection(node, SECTION);
}

onChange(() => {
  for (const [node] of allNodes()) editors.get(node)?.update();
});
app.registerExtension({
  name: "e4t.cropEditor",
  nodeCreated(node) {
    if (node.comfyClass !== LEARNER) return;
    const button = node.addWidget("button", BUTTON, null, () => toggle(node), { serialize: false });
    button.label = say("Crop editor");
    // It holds nothing: neither the workflow nor a job knows of it.
    button.serialize = false;
  },
});
