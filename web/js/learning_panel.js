/**
 * On a node that learns, while it does and after: how far it is, the crop with its mask, the loss, the memory plan.
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { drawCurve, makeCurve } from "./curve.js";
import { nodeAt, root, workflowId } from "./graph.js";
import { eachOutput } from "./history.js";
import { LEARNERS } from "./methods.js";
import { hasSection, hideStockText, make, section } from "./panel.js";
import { say } from "./say.js";

/** The message, and the key of the same table in a node's outputs: as in nodes/host/live_view.py. */
const MESSAGE = "e4t.learning";
const OUTPUT = "e4t_learning";
const SECTION = "learning";
/** Whose panels are remembered. */
const WORKFLOWS = 16;
const JPEG = /^data:image\/jpeg;base64,[A-Za-z0-9+/=]+$/;

/**
 * What panels show: workflow -> node as jobs call it -> message. It outlives the nodes, which ComfyUI makes anew whenever
 * another workflow is opened.
 * @type {Map<string, Map<string, object>>}
 */
const messages = new Map();
/** The parts of each panel, by node. */
const parts = new WeakMap();

/** Remembers a message; what it does not say stays as it was. */
function remember(workflow, node, message) {
  const known = messages.get(workflow) ?? new Map();
  messages.delete(workflow);
  messages.set(workflow, known);
  if (messages.size > WORKFLOWS) messages.delete(messages.keys().next().value);
  known.set(node, { ...known.get(node), ...message });
}

/**
 * The fingerprint of the concept that a node has learned; empty where it has learned none.
 * @param {string} name of the node, as jobs call it.
 */
export function fingerprintOf(name) {
  return messages.get(workflowId())?.get(name)?.concept ?? "";
}

/** Draws all that is known of the open workflow. */
function drawAll() {
  for (const [name, message] of messages.get(workflowId()) ?? []) draw(nodeAt(name), message);
}

/** Draws a message on a node, if that is one that learns. */
function draw(node, message) {
  if (!LEARNERS.has(node?.comfyClass)) return;
  const place = section(node, SECTION);
  if (parts.get(node)?.place !== place) parts.set(node, build(place));
  const { title, count, picture, preview, figures, box, curve, from, to, notes } = parts.get(node);
  const learning = message.state === "learning";
  const [first, ...others] = message.lines;
  place.dataset.state = message.state;
  setText(title, learning ? say("Learning {trigger}", { trigger: message.trigger }) : first);
  setText(count, learning ? countOf(message) : "");
  setPicture(picture, message.picture);
  setPicture(preview, message.preview);
  const losses = message.losses;
  box.hidden = losses.length < 2;
  figures.hidden = box.hidden && picture.hidden;
  if (!box.hidden) {
    const [start, end] = [losses[0], losses[losses.length - 1]].map((value) => value.toPrecision(3));
    const share = message.steps && learning ? Math.min(1, message.step / message.steps) : 1;
    drawCurve(curve, losses, share, say("Loss over {steps} steps: from {start} to {end}", { steps: message.step, start, end }));
    setText(from, say("loss {start} → ", { start }));
    setText(to, end);
  }
  const text = others.join("\n");
  if (notes.dataset.text !== text) {
    notes.dataset.text = text;
    notes.replaceChildren(...others.map((line) => make("li", "", line)));
  }
  hideStockText(node);
}

/** The panel's parts, in their place. */
function build(place) {
  const title = make("span", "e4t-title");
  // Said to those who do not see it when it changes: at the start and at the end, not at every step.
  title.setAttribute("role", "status");
  const count = make("span", "e4t-count");
  const picture = make("img", "e4t-picture");
  picture.alt = say("The photo as it is learned: what is dark and gray is left out");
  picture.draggable = false;
  const preview = make("img", "e4t-picture");
  preview.alt = say("What it would draw now, small and in rough colors");
  preview.title = preview.alt;
  preview.draggable = false;
  const curve = makeCurve();
  // Where there is no room for both, the last loss counts.
  const from = make("span", "e4t-from");
  const to = make("span", "");
  const box = make("div", "e4t-box", curve, make("span", "e4t-loss", from, to));
  const figures = make("div", "e4t-figures", picture, preview, box);
  const notes = make("ul", "e4t-notes");
  place.replaceChildren(make("div", "e4t-head", title, count), figures, notes);
  return { place, title, count, picture, preview, figures, box, curve, from, to, notes };
}

/** "step 7 of 15 · 4 s", or what comes before and after the steps. */
function countOf({ step, steps, done, total, seconds_left: seconds }) {
  if (!step) return done ? say("looking for the subject") : say("preparing");
  const where = done < total ? say("step {step} of {steps}", { step, steps }) : say("finishing");
  return seconds == null ? where : say("{where} · {time} left", { where, time: timeOf(seconds) });
}

function timeOf(seconds) {
  if (seconds < 90) return say("{seconds} s", { seconds });
  if (seconds < 5400) return say("{minutes} min", { minutes: Math.round(seconds / 60) });
  return say("{hours} h", { hours: (seconds / 3600).toFixed(1) });
}

function setPicture(element, uri) {
  element.hidden = !JPEG.test(uri ?? "");
  if (!element.hidden && element.getAttribute("src") !== uri) element.src = uri;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A message, as it comes. */
function receive({ detail }) {
  const { node, workflow, ...message } = detail;
  // A script that uses this page's identity may send none.
  remember(workflow || workflowId(), node, message);
  if (!workflow || workflow === workflowId()) draw(nodeAt(node), messages.get(workflow || workflowId()).get(node));
}

/** The outputs of a node: after a run, and where ComfyUI had its result. */
function receiveOutput(name, last) {
  const known = messages.get(workflowId())?.get(name);
  // Pictures are never among outputs; the one that is shown may be of another photo.
  const same = known?.concept === last.concept;
  remember(workflowId(), name, same ? { ...last, lines: known.lines } : { picture: "", preview: "", ...last });
  draw(nodeAt(name), messages.get(workflowId()).get(name));
}

/** After a reload: what the latest jobs of this server said. Pictures are not kept there. */
async function restore() {
  await eachOutput(OUTPUT, (workflow, name, last) => {
    if (!messages.get(workflow)?.has(name)) remember(workflow, name, last);
  });
  drawAll();
}

// Here, not in setup: ComfyUI's own listeners for pictures come after the extensions are loaded.
api.addEventListener(MESSAGE, receive);
api.addEventListener("b_preview_with_metadata", (event) => {
  // The panel has this picture, and keeps it after the run: it is not drawn below the node as well.
  const node = nodeAt(event.detail.displayNodeId ?? event.detail.nodeId);
  if (node && hasSection(node, SECTION) && parts.get(node)?.picture.hidden === false) event.stopImmediatePropagation();
});
api.addEventListener("progress_text", ({ detail }) => {
  const node = nodeAt(detail.nodeId);
  // After ComfyUI's own listener, which makes the text.
  if (node && hasSection(node, SECTION)) queueMicrotask(() => hideStockText(node));
});
api.addEventListener("executed", ({ detail }) => {
  const last = detail.output?.[OUTPUT]?.[0];
  if (last) receiveOutput(detail.display_node ?? detail.node, last);
});

app.registerExtension({
  name: "e4t.learningPanel",
  setup() {
    restore().catch((error) => console.warn("E4T: the history could not be read:", error));
  },
  afterConfigureGraph() {
    if (root()) drawAll();
  },
});
