/**
 * A mark on every node that gives a word, where no prompt behind it has the word: what it learned would not be drawn.
 * Where a prompt comes from nodes whose text nobody can know before they run, there is no mark.
 */
import { triggerOf } from "./concept_card.js";
import { allNodes, isActive, onChange, sourceOf, targetsOf, valueOf } from "./graph.js";
import { LEARNERS } from "./methods.js";
import { dropSection, hasSection, make, section } from "./panel.js";
import { say } from "./say.js";
import { app } from "../../../scripts/app.js";

const SECTION = "warning";
/** Nodes whose text is what their widgets say. */
const WRITTEN = /^(Primitive|CLIPTextEncode|StringConcatenate|StringTrim)/;
/** As in nodes/host/prompt/triggers.py: a character that a word goes on with, in scripts that are written with spaces. */
export const GOES_ON = "(?![\\u2e80-\\uffef])[\\p{L}\\p{N}_]";
const marked = new WeakMap();

/**
 * Whether a text holds a trigger as a word of its own; case counts.
 * @param {string} text
 * @param {string} trigger
 */
export function holds(text, trigger) {
  const word = trigger.normalize("NFC").replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
  return new RegExp(`(?<!${GOES_ON})${word}(?!${GOES_ON}|\\*)`, "u").test(text.normalize("NFC"));
}

/**
 * All texts that are encoded with a CLIP.
 * @param {object} node whose CLIP it is.
 * @returns {{texts: string[], encoders: number, unsure: boolean}}
 */
function promptsBehind(node) {
  const found = { texts: [], encoders: 0, unsure: false };
  const seen = new Set();
  const follow = (at) => {
    for (const [slot, output] of (at.outputs ?? []).entries()) {
      if (output.type !== "CLIP") continue;
      for (const { node: next } of targetsOf(at, slot)) {
        if (seen.has(next)) continue;
        seen.add(next);
        if (next.outputs?.some((one) => one.type === "CONDITIONING")) {
          found.encoders += 1;
          gather(next, found);
        }
        follow(next);
      }
    }
  };
  follow(node);
  return found;
}

/** Adds the texts of an encoder, and of what is wired into it. */
function gather(node, found, seen = new Set()) {
  if (seen.has(node)) return;
  seen.add(node);
  const own = (node.widgets ?? []).filter((widget) => typeof widget.value === "string");
  const linked = (node.inputs ?? []).filter((input) => input.link != null && input.type === "STRING");
  const replaced = new Set(linked.map((input) => input.widget?.name));
  found.texts.push(...own.filter((widget) => !replaced.has(widget.name)).map((widget) => widget.value));
  if (!own.length && !linked.length) found.unsure = true;
  for (const input of linked) {
    const source = sourceOf(node, input);
    if (source?.widget) {
      found.texts.push(String(source.widget.value));
    } else if (source) {
      if (!WRITTEN.test(source.node.comfyClass ?? source.node.type)) found.unsure = true;
      gather(source.node, found, seen);
    } else {
      found.unsure = true;
    }
  }
}

/** What is wrong with a node's word, in a sentence; empty where nothing is, or nobody can tell. */
function faultOf(node) {
  const trigger = valueOf(node, "trigger") || triggerOf(node);
  const wired = node.inputs?.some((input) => input.name === "trigger" && input.link != null);
  if (!trigger || wired || !isActive(node)) return "";
  const { texts, encoders, unsure } = promptsBehind(node);
  if (unsure || texts.some((text) => holds(text, trigger))) return "";
  const handsOn = node.outputs?.some((output) => output.type === "E4T_CONCEPT" && output.links?.length);
  // To learn and to save needs no prompt.
  if (!encoders) return handsOn ? "" : say("No prompt is encoded with this node's CLIP, so {trigger} is not drawn.", { trigger });
  const near = texts.some((text) => holds(text.toLowerCase(), trigger.toLowerCase()));
  return near
    ? say("{trigger} is only with other capitals: write it into one, or it is not drawn.", { trigger })
    : say("{trigger} is in no prompt behind this node: write it into one, or it is not drawn.", { trigger });
}

function checkWords() {
  for (const [node] of allNodes()) {
    if (!LEARNERS.has(node.comfyClass)) continue;
    const fault = faultOf(node);
    if ((marked.get(node) ?? "") === fault && Boolean(fault) === hasSection(node, SECTION)) continue;
    marked.set(node, fault);
    if (!fault) {
      dropSection(node, SECTION);
      continue;
    }
    const sign = make("span", "e4t-sign", "⚠");
    sign.setAttribute("aria-hidden", "true");
    const text = make("span", "", fault);
    text.setAttribute("role", "status");
    section(node, SECTION).replaceChildren(sign, text);
  }
}

onChange(checkWords);
app.registerExtension({ name: "e4t.unusedWord" });
