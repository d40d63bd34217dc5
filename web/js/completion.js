/**
 * In prompts, the rest of a trigger that the open workflow has, or of a saved concept's name (embedding:e4t/NAME).
 * One set of listeners on the page: it serves every multiline text of a node, in both node modes, and changes none.
 * Where another pack's list is open as well, all keys are that one's, and ours is for the mouse.
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { triggerOf } from "./concept_card.js";
import { allNodes, valueOf } from "./graph.js";
import { make } from "./panel.js";
import { GOES_ON } from "./unused_word.js";

const SAVE = "E4TSaveConcept";
/** Multiline texts of nodes: on the classic canvas, and in Nodes 2.0. */
const TEXTS = "textarea.comfy-multiline-input, [data-node-id] textarea";
/** How the packs that complete prompts call their lists. */
const OTHERS = "[class*='autocomplete' i], [id*='autocomplete' i]";
/** Folder of saved concepts below the embeddings: as in nodes/host/model_folders.py. */
const FOLDER = "e4t/";
const NAMED = `embedding:${FOLDER}`;
/** Letters of a name before it is offered; a trigger is offered at the first one. */
const LEAST_OF_NAME = 3;
const MOST = 8;
const GOING_ON = new RegExp(GOES_ON, "u");
/** What a mirror of a text needs to break its lines where the text does. */
const STYLE = ["fontFamily", "fontSize", "fontStyle", "fontWeight", "letterSpacing", "lineHeight", "padding", "tabSize", "textAlign", "textIndent", "wordSpacing"];
const GAP = 4;

/** @type {string[]} names that stock prompts know saved concepts by. */
let names = [];
/** The open list: {text, box, items: {word, typed}[], at}; at is -1 where none is chosen. */
let open = null;

async function readNames() {
  const found = (await api.getEmbeddings()).map((name) => name.replaceAll("\\", "/"));
  names = found.filter((name) => name.startsWith(FOLDER)).map((name) => `embedding:${name}`);
}

function refreshNames() {
  readNames().catch((error) => console.warn("E4T: saved concepts could not be listed:", error));
}

/** All triggers that the open workflow has, each once. */
function triggers() {
  const found = new Set();
  for (const [node] of allNodes()) {
    if (!node.comfyClass?.startsWith("E4T")) continue;
    const trigger = valueOf(node, "trigger") || triggerOf(node);
    if (typeof trigger === "string" && trigger) found.add(trigger);
  }
  return [...found];
}

/**
 * How many characters before the caret begin a word; 0 where they do not, or where all of it is there.
 * @param {string} before the text up to the caret.
 * @param {string} word
 * @param {number} least characters that count.
 */
function typedOf(before, word, least) {
  const end = before.toLowerCase();
  const wanted = word.toLowerCase();
  for (let count = Math.min(word.length, before.length); count >= least; count -= 1) {
    if (!end.endsWith(wanted.slice(0, count))) continue;
    const ahead = before.slice(0, before.length - count);
    if (GOING_ON.test(word[0]) && GOING_ON.test(ahead.slice(-1))) continue;
    return before.endsWith(word) ? 0 : count;
  }
  return 0;
}

/** What can be completed at a text's caret: those with the same capitals first. */
function itemsAt(text) {
  const { value, selectionStart, selectionEnd } = text;
  // In the middle of a word, nothing is to be completed.
  if (selectionStart !== selectionEnd || GOING_ON.test(value.slice(selectionEnd, selectionEnd + 1))) return [];
  const before = value.slice(0, selectionEnd);
  const found = [];
  for (const [words, least] of [[triggers(), 1], [names, LEAST_OF_NAME]]) {
    for (const word of words) {
      const typed = typedOf(before, word, least);
      if (typed) found.push({ word, typed, same: before.endsWith(word.slice(0, typed)) });
    }
  }
  return found.sort((one, other) => Number(other.same) - Number(one.same)).slice(0, MOST);
}

/** Whether a list of another pack is seen. */
function othersOpen() {
  for (const one of document.querySelectorAll(OTHERS)) {
    if (!one.closest(".e4t-completion") && !one.matches("input, textarea") && one.checkVisibility() && one.offsetHeight) return true;
  }
  return false;
}

function update(text) {
  close();
  const items = itemsAt(text);
  if (!items.length) return;
  const box = make("div", "e4t-completion");
  box.setAttribute("role", "listbox");
  box.id = "e4t-completion";
  open = { text, box, items, at: -1 };
  for (const [at, { word, typed }] of items.entries()) {
    const line = make("div", "e4t-choice", make("b", "", word.slice(0, typed)), word.slice(typed));
    line.setAttribute("role", "option");
    line.id = `e4t-choice-${at}`;
    // Before the text loses the focus, and without the canvas behind it.
    line.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      choose(at);
      accept();
    });
    box.append(line);
  }
  document.body.append(box);
  place();
  // With other capitals it may be another word that is written here: the person chooses.
  choose(items[0].same ? 0 : -1);
}

function choose(at) {
  open.at = at;
  for (const [index, line] of [...open.box.children].entries()) line.setAttribute("aria-selected", String(index === at));
  if (at >= 0) open.text.setAttribute("aria-activedescendant", open.box.children[at].id);
  else open.text.removeAttribute("aria-activedescendant");
}

/** Above the caret's line, because lists of other packs are below it; below it where there is no room. */
function place() {
  const { text, box } = open;
  const { left, top, height } = caretOf(text);
  const { offsetWidth: width, offsetHeight: tall } = box;
  const above = top - tall - GAP;
  box.style.left = `${Math.max(GAP, Math.min(left, window.innerWidth - width - GAP))}px`;
  box.style.top = `${above >= GAP ? above : top + height + GAP}px`;
}

/** Where a text's caret is on the page, in pixels, and how high its line is. */
function caretOf(text) {
  const style = getComputedStyle(text);
  const mirror = make("div", "e4t-mirror");
  for (const name of STYLE) mirror.style[name] = style[name];
  mirror.style.width = `${text.clientWidth}px`;
  const mark = make("span", "", "|");
  mirror.append(text.value.slice(0, text.selectionEnd), mark);
  document.body.append(mirror);
  const [x, y, high] = [mark.offsetLeft, mark.offsetTop, mark.offsetHeight];
  mirror.remove();
  const box = text.getBoundingClientRect();
  // Nodes are drawn larger or smaller.
  const scale = box.width / text.offsetWidth || 1;
  const top = box.top + (text.clientTop + y - text.scrollTop) * scale;
  return {
    left: box.left + (text.clientLeft + x - text.scrollLeft) * scale,
    top: Math.max(box.top, Math.min(top, box.bottom)),
    height: high * scale,
  };
}

function accept() {
  const { text, items, at } = open;
  const { word, typed } = items[at];
  close();
  text.focus();
  const end = text.selectionEnd;
  text.setSelectionRange(end - typed, end);
  // So that it can be undone; the fallback cannot.
  if (!document.execCommand("insertText", false, word)) {
    text.setRangeText(word, end - typed, end, "end");
    text.dispatchEvent(new InputEvent("input", { bubbles: true, inputType: "insertText", data: word }));
  }
  // That was an input, too; the list may have opened for a longer word.
  close();
}

function close() {
  if (!open) return;
  open.text.removeAttribute("aria-activedescendant");
  open.box.remove();
  open = null;
}

function onInput(event) {
  const text = event.target;
  if (!(text instanceof HTMLTextAreaElement) || !text.matches(TEXTS) || text.readOnly) return;
  // Half a word of an input method is no word yet; and a text that a script sets is nobody's typing.
  if (event.isComposing || document.activeElement !== text) return close();
  update(text);
}

function onKey(event) {
  if (!open || event.target !== open.text || event.isComposing) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || othersOpen()) return;
  const { items, at } = open;
  if (event.key === "Escape") {
    close();
  } else if (event.key === "ArrowDown") {
    choose((at + 1) % items.length);
  } else if (event.key === "ArrowUp") {
    choose((at < 1 ? items.length : at) - 1);
  } else if ((event.key === "Tab" || event.key === "Enter") && at >= 0) {
    accept();
  } else {
    return;
  }
  event.preventDefault();
  event.stopImmediatePropagation();
}

/** What is chosen is only shown where a key would take it. */
function afterKey() {
  if (open && open.at >= 0 && othersOpen()) choose(-1);
}

app.registerExtension({
  name: "e4t.completion",
  setup() {
    refreshNames();
    // The input's own listeners come first: an item is never offered for a text that was changed meanwhile.
    document.addEventListener("input", onInput);
    document.addEventListener("keydown", onKey, true);
    document.addEventListener("keyup", afterKey);
    document.addEventListener("compositionstart", close);
    document.addEventListener("selectionchange", () => {
      // The caret was moved: the list was made for another place.
      if (open && JSON.stringify(itemsAt(open.text)) !== JSON.stringify(open.items)) close();
    });
    for (const kind of ["pointerdown", "focusout"]) {
      document.addEventListener(kind, (event) => open && !open.box.contains(event.target) && close(), true);
    }
    // It does not move with the canvas.
    document.addEventListener("wheel", (event) => open && !open.box.contains(event.target) && close(), { capture: true, passive: true });
    window.addEventListener("resize", close);
  },
  refreshComboInNodes: refreshNames,
});

api.addEventListener("executed", ({ detail }) => {
  for (const [node, name] of allNodes()) if (name === (detail.display_node ?? detail.node) && node.comfyClass === SAVE) refreshNames();
});
