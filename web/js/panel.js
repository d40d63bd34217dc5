/**
 * The panel below a node's widgets: one DOM widget, made when there is something to show and gone when there is not.
 * Each feature has a section of its own in it.
 */
import { app } from "../../../scripts/app.js";

const NAME = "e4t_panel";
/** From top to bottom. */
const SECTIONS = ["warning", "concept", "crop", "learning", "word"];
const MARGIN = 6;
/** The text that ComfyUI shows on a node, which a panel can say itself. */
const STOCK_TEXT = "$$node-text-preview";

/** @type {WeakMap<object, Panel>} */
const panels = new WeakMap();

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./e4t.css", import.meta.url).href;
document.head.append(style);

/** One node's panel. */
class Panel {
  /** @param {object} node it stands on. */
  constructor(node) {
    this.node = node;
    this.body = make("div", "e4t-body");
    this.sections = new Map();
    const frame = make("div", "e4t-panel", this.body);
    this.widget = node.addDOMWidget(NAME, NAME, frame, {
      serialize: false,
      margin: MARGIN,
      getMinHeight: () => this.height,
    });
    // Nothing of it is part of the workflow.
    this.widget.serialize = false;
    this.height = 0;
    this.watch = new ResizeObserver(() => this.fit());
    this.watch.observe(this.body);
  }

  /** Gives the panel the height that it needs; the node never shrinks by itself. */
  fit() {
    const needed = this.body.offsetHeight && this.body.offsetHeight + 2 * MARGIN;
    if (!needed || needed === this.height) return;
    this.height = needed;
    const [width, height] = this.node.size;
    const least = this.node.computeSize()[1];
    if (least > height) this.node.setSize([width, least]);
    this.node.setDirtyCanvas?.(true, true);
  }
}

/**
 * A node's section of a name, which is made if there is none.
 * @param {object} node
 * @param {string} name one of the sections.
 * @returns {HTMLElement}
 */
export function section(node, name) {
  if (!panels.has(node)) panels.set(node, new Panel(node));
  const panel = panels.get(node);
  if (!panel.sections.has(name)) {
    panel.sections.set(name, make("section", `e4t-section e4t-${name}`));
    const shown = SECTIONS.filter((one) => panel.sections.has(one));
    panel.body.replaceChildren(...shown.map((one) => panel.sections.get(one)));
  }
  return panel.sections.get(name);
}

/** Takes a node's section of a name away, and its panel with the last one. */
export function dropSection(node, name) {
  const panel = panels.get(node);
  if (!panel?.sections.has(name)) return;
  panel.sections.get(name).remove();
  panel.sections.delete(name);
  if (panel.sections.size) return;
  panel.watch.disconnect();
  panels.delete(node);
  node.removeWidget(panel.widget);
  node.setDirtyCanvas?.(true, true);
}

/** Whether a node has a section of a name. */
export function hasSection(node, name) {
  return panels.get(node)?.sections.has(name) ?? false;
}

/**
 * Hides the text that ComfyUI shows on a node whose panel says the same, or shows it again.
 * @param {object} node
 * @param {boolean} hidden
 */
export function hideStockText(node, hidden = true) {
  const text = node.widgets?.find((widget) => widget.name === STOCK_TEXT);
  if (!text || Boolean(text.hidden) === hidden) return;
  // The classic canvas reads one, Nodes 2.0 the other.
  text.hidden = hidden;
  text.options.hidden = hidden;
  app.canvas?.setDirty(true, true);
}

/**
 * An element.
 * @param {string} kind its tag.
 * @param {string} style its class.
 * @param {...(Node | string)} content texts stay texts, whatever is in them.
 * @returns {HTMLElement}
 */
export function make(kind, style, ...content) {
  const made = document.createElement(kind);
  made.className = style;
  made.append(...content);
  return made;
}
