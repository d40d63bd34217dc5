/**
 * After sampling, on the node that gives a word: how far the refined word went from the coarse one while the picture was
 * drawn, from noise to picture (the paper's figure 7).
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { fingerprintOf as appliedConcept } from "./concept_card.js";
import { drawCurve, makeCurve } from "./curve.js";
import { allNodes, onChange } from "./graph.js";
import { fingerprintOf as learnedConcept } from "./learning_panel.js";
import { dropSection, make, section } from "./panel.js";
import { say } from "./say.js";

/** As in nodes/host/live_view.py. */
const MESSAGE = "e4t.words";
const SECTION = "word";
/** Concepts whose curves are remembered. */
const CONCEPTS = 64;

/** Fingerprint -> what its last picture said: {trigger, points: [timestep, length][]}. */
const words = new Map();
const shown = new WeakMap();

function drawWords() {
  for (const [node, name] of allNodes()) {
    const word = words.get(learnedConcept(name) || appliedConcept(name));
    if (shown.get(node) === word) continue;
    shown.set(node, word);
    if (word) draw(node, word);
    else dropSection(node, SECTION);
  }
}

function draw(node, { trigger, points }) {
  const lengths = points.map(([, length]) => length);
  const percent = (value) => `${Math.round(100 * value)} %`;
  const [first, last] = [lengths[0], lengths[lengths.length - 1]].map(percent);
  const curve = makeCurve();
  const text = say("How far {trigger} was from the coarse word, from noise to picture: {first} to {last} of its length", { trigger, first, last });
  drawCurve(curve, lengths, 1, text);
  const box = make("div", "e4t-box e4t-low", curve, make("span", "e4t-loss", `${first} → ${last}`));
  const head = make("div", "e4t-head", make("span", "", say("Offset of {trigger}", { trigger })), make("span", "e4t-count", say("noise → picture")));
  head.title = text;
  section(node, SECTION).replaceChildren(head, box);
}

api.addEventListener(MESSAGE, ({ detail }) => {
  for (const { concept, trigger, points } of detail.words) {
    if (points.length < 2) continue;
    words.delete(concept);
    words.set(concept, { trigger, points });
    if (words.size > CONCEPTS) words.delete(words.keys().next().value);
  }
  drawWords();
});

onChange(drawWords);
app.registerExtension({ name: "e4t.wordLength" });
