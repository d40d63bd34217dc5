/**
 * On Load and Apply E4T Concept: what the concept is called, looks like and was made with, and a button that copies its
 * trigger. Before anything runs it is read from the file, by ComfyUI's own way to files' metadata. Everything in it may
 * come from a stranger.
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { allNodes, nodeAt, onChange, sourceOf, valueOf, workflowId } from "./graph.js";
import { eachOutput } from "./history.js";
import { METHODS } from "./methods.js";
import { dropSection, hideStockText, make, section } from "./panel.js";
import { say } from "./say.js";

const SECTION = "concept";
const LOAD = "E4TLoadConcept";
const APPLY = "E4TApplyConcept";
const SAVE = "E4TSaveConcept";
/** The key of the same table in a node's outputs: as in nodes/host/live_view.py. */
const OUTPUT = "e4t_concept";
const KEPT = new Map([
  ["recipe", () => say("a recipe, learned again when it is applied")],
  ["word", () => say("its word alone")],
  ["compact", () => say("compact")],
]);
/** Pictures of pixels, inside the text: an address would be asked for, and a drawing may hold scripts. */
const THUMBNAIL = /^data:image\/(jpeg|png|webp);base64,[A-Za-z0-9+/]+=*$/;
/** Characters of a text that are shown. */
const LONGEST = 200;
/** Milliseconds that "Copied" stays. */
const COPIED = 1500;

/** What nodes said of their concepts when they ran: workflow/node -> table. */
const said = new Map();
/** File -> promise of its table, or of nothing. */
const files = new Map();
/** Node -> what its card shows, as text. */
const shown = new WeakMap();

/** Reads a concept file's description; whatever it is, nothing but texts and a safe picture come of it. */
async function read(name) {
  const answer = await api.fetchApi(`/view_metadata/embeddings?filename=${encodeURIComponent(`e4t/${name}.safetensors`)}`);
  if (!answer.ok) return null;
  const metadata = await answer.json();
  const info = JSON.parse(metadata["e4t.info"] ?? "null");
  if (!info) return null;
  return {
    trigger: info.trigger,
    title: info.title,
    method: info.method,
    base: info.base_name,
    domain: info.domain_name,
    kept: info.body,
    thumbnail: metadata["modelspec.thumbnail"],
  };
}

function fileOf(name) {
  if (!files.has(name)) files.set(name, read(name).catch(() => null));
  return files.get(name);
}

/** The table of a node's concept, or nothing where nobody knows it yet. */
async function conceptOf(node, name) {
  const ran = said.get(`${workflowId()}/${name}`);
  if (node.comfyClass === LOAD) return fileOf(valueOf(node, "concept_name"));
  const source = sourceOf(node, node.inputs?.find((input) => input.name === "concept"))?.node;
  const before = source?.comfyClass === LOAD ? await fileOf(valueOf(source, "concept_name")) : ran;
  const trigger = valueOf(node, "trigger");
  return before && { ...before, ...(trigger ? { trigger } : {}) };
}

/** The trigger that a node's card shows; empty where there is no card. */
export function triggerOf(node) {
  return JSON.parse(shown.get(node) ?? "null")?.trigger ?? "";
}

/**
 * The fingerprint of the concept that a node applied when it ran; empty where it did not run.
 * @param {string} name of the node, as jobs call it.
 */
export function fingerprintOf(name) {
  const ran = said.get(`${workflowId()}/${name}`);
  return ran?.applied ? ran.concept : "";
}

/** Brings the cards of all nodes up to date. */
function checkCards() {
  for (const [node, name] of allNodes()) {
    if (node.comfyClass !== LOAD && node.comfyClass !== APPLY) continue;
    conceptOf(node, name).then((concept) => show(node, concept && plain(concept)));
  }
}

/** A table with nothing but short texts. */
function plain(concept) {
  const text = (value) => (typeof value === "string" ? value.slice(0, LONGEST) : "");
  const { trigger, title, method, base, domain, kept, thumbnail } = concept;
  const made = [
    METHODS.get(method) ?? text(method),
    text(base) && say("on {base}", { base: text(base) }),
    text(domain) && say("domain {domain}", { domain: text(domain) }),
    KEPT.get(kept)?.(),
  ];
  return {
    trigger: text(trigger),
    title: text(title),
    made: made.filter(Boolean).join(" · "),
    thumbnail: THUMBNAIL.test(thumbnail ?? "") ? thumbnail : "",
  };
}

function show(node, concept) {
  const text = JSON.stringify(concept ?? null);
  if (shown.get(node) === text || (!concept && !shown.has(node))) return;
  shown.set(node, text);
  if (!concept) return dropSection(node, SECTION);
  const { trigger, title, made, thumbnail } = concept;
  const words = make("div", "e4t-words", make("strong", "e4t-title", trigger));
  if (title && title !== trigger) words.append(make("span", "", title));
  words.append(make("span", "e4t-made", made));
  const parts = [words, copyButton(trigger)];
  if (thumbnail) {
    const picture = make("img", "e4t-thumbnail");
    picture.alt = say("Thumbnail of {name}", { name: title || trigger });
    picture.draggable = false;
    picture.src = thumbnail;
    parts.unshift(picture);
  }
  section(node, SECTION).replaceChildren(...parts);
}

/** A button that puts a trigger into the clipboard, and says that it did. */
function copyButton(trigger) {
  const button = make("button", "e4t-copy", say("Copy"));
  button.type = "button";
  button.title = say("Copy {trigger}", { trigger });
  button.setAttribute("aria-label", button.title);
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    const copied = await copy(trigger);
    button.textContent = copied ? say("Copied") : say("Not allowed");
    button.setAttribute("aria-label", copied ? say("{trigger} is copied", { trigger }) : say("The browser does not allow it"));
    setTimeout(() => {
      button.textContent = say("Copy");
      button.setAttribute("aria-label", button.title);
    }, COPIED);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages of other computers without https are not given the clipboard: the old way.
    const field = make("textarea", "", text);
    field.style.position = "fixed";
    field.style.opacity = "0";
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

api.addEventListener("executed", ({ detail }) => {
  const table = detail.output?.[OUTPUT]?.[0];
  const name = detail.display_node ?? detail.node;
  // A loader's word is drawn by the node that applies it.
  if (table) said.set(`${workflowId()}/${name}`, { ...table, applied: nodeAt(name)?.comfyClass === APPLY });
  // A file may be another one by now.
  const writes = nodeAt(name)?.comfyClass === SAVE;
  if (table || writes) files.clear();
  if (table || writes) checkCards();
});

api.addEventListener("progress_text", ({ detail }) => {
  const node = nodeAt(detail.nodeId);
  // One line is what the card says; notes are not in it. ComfyUI's own listener comes first.
  if (node?.comfyClass === LOAD && triggerOf(node)) {
    queueMicrotask(() => hideStockText(node, !detail.text.trim().includes("\n")));
  }
});

onChange(checkCards);
app.registerExtension({
  name: "e4t.conceptCard",
  async setup() {
    await eachOutput(OUTPUT, (workflow, node, table) => {
      if (!said.has(`${workflow}/${node}`)) said.set(`${workflow}/${node}`, table);
    }).catch((error) => console.warn("E4T: the history could not be read:", error));
  },
  refreshComboInNodes() {
    files.clear();
  },
});
