/**
 * What of the open workflow the panels have to know: where a node is, and what lies before and behind it, through
 * reroutes, bypassed nodes and the borders of subgraphs.
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const BYPASSED = 4;
const MUTED = 2;
/** The two ends of a subgraph, as links name them. */
const SUBGRAPH_INPUT = "-10";
const SUBGRAPH_OUTPUT = "-20";
/** Milliseconds between two looks for changes that nothing tells of. */
const PATIENCE = 1000;

/** The workflow that is open, or nothing while the page starts. */
export function root() {
  return app.rootGraph ?? null;
}

/** The id of the workflow that is open; empty if it has none. */
export function workflowId() {
  return String(root()?.id ?? "");
}

/**
 * The node that a job calls so.
 * @param {string} execution "4", or "10:4" for node 4 of the subgraph node 10.
 * @returns {object | null} the node; none if the open workflow has none of that name.
 */
export function nodeAt(execution) {
  let graph = root();
  let node = null;
  for (const id of String(execution).split(":")) {
    node = graph?.getNodeById(id) ?? null;
    graph = node?.subgraph ?? null;
  }
  return node;
}

/**
 * All nodes of the open workflow, those in subgraphs too, each with the name that a job gives it.
 * @yields {[object, string]} a node and its name.
 */
export function* allNodes(graph = root(), path = "") {
  for (const node of graph?.nodes ?? []) {
    const name = path ? `${path}:${node.id}` : String(node.id);
    yield [node, name];
    if (node.subgraph) yield* allNodes(node.subgraph, name);
  }
}

/** Whether a node runs: it is neither muted nor bypassed. */
export function isActive(node) {
  return node.mode !== MUTED && node.mode !== BYPASSED;
}

/** The value of a node's widget, or nothing. */
export function valueOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

/**
 * Where what comes into an input is made.
 * @param {object} node
 * @param {object} input one of its inputs.
 * @returns {{node: object, widget?: object} | null} the node that makes it, or the subgraph node whose widget holds it.
 */
export function sourceOf(node, input) {
  return input?.link == null ? null : sourceOfLink(node.graph, input.link, new Set());
}

function sourceOfLink(graph, id, seen) {
  const link = graph?.getLink(id);
  if (!link || seen.has(link)) return null;
  seen.add(link);
  if (String(link.origin_id) === SUBGRAPH_INPUT) {
    const host = hostOf(graph);
    const input = host?.inputs[link.origin_slot];
    if (!input) return null;
    if (input.link != null) return sourceOfLink(host.graph, input.link, seen);
    const widget = host.widgets?.find((one) => one.name === (input.widget?.name ?? input.name));
    return widget ? { node: host, widget } : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (node?.subgraph) {
    const inner = node.subgraph.outputs[link.origin_slot]?.linkIds?.[0];
    return inner == null ? null : sourceOfLink(node.subgraph, inner, seen);
  }
  if (!node || !passesOn(node)) return node && { node };
  const input = node.inputs.find((one) => one.link != null && fits(one, link, node));
  return input ? sourceOfLink(node.graph, input.link, seen) : null;
}

/**
 * What an output goes into.
 * @param {object} node
 * @param {number} slot of the output.
 * @yields {{node: object, input: object}}
 */
export function* targetsOf(node, slot, seen = new Set()) {
  for (const id of node.outputs?.[slot]?.links ?? []) yield* targetsOfLink(node.graph, id, seen);
}

function* targetsOfLink(graph, id, seen) {
  const link = graph?.getLink(id);
  if (!link || seen.has(link)) return;
  seen.add(link);
  if (String(link.target_id) === SUBGRAPH_OUTPUT) {
    const host = hostOf(graph);
    if (host) yield* targetsOf(host, link.target_slot, seen);
    return;
  }
  const node = graph.getNodeById(link.target_id);
  if (!node || node.mode === MUTED) return;
  if (node.subgraph) {
    for (const inner of node.subgraph.inputs[link.target_slot]?.linkIds ?? []) {
      yield* targetsOfLink(node.subgraph, inner, seen);
    }
  } else if (passesOn(node)) {
    for (const [at, output] of node.outputs.entries()) {
      if (fits(output, link, node)) yield* targetsOf(node, at, seen);
    }
  } else {
    yield { node, input: node.inputs[link.target_slot] };
  }
}

/** The subgraph node that a subgraph is in; where it is used several times, the first. */
function hostOf(graph) {
  for (const [node] of allNodes()) if (node.subgraph === graph) return node;
  return null;
}

function passesOn(node) {
  return node.mode === BYPASSED || node.type === "Reroute";
}

function fits(slot, link, node) {
  return node.type === "Reroute" || slot.type === link.type;
}

const checks = new Set();

/**
 * Has a function called whenever the open workflow may have changed, and once in a while.
 * @param {() => void} check cheap where nothing has changed.
 */
export function onChange(check) {
  checks.add(check);
}

function checkAll() {
  if (!root()) return;
  for (const check of checks) {
    try {
      check();
    } catch (error) {
      // One panel's fault must not end the others.
      console.error("E4T:", error);
    }
  }
}

api.addEventListener("graphChanged", checkAll);
app.registerExtension({
  name: "e4t.changes",
  setup() {
    // ComfyUI tells of changes by hand only: not of those that other scripts make.
    setInterval(() => document.hidden || checkAll(), PATIENCE);
  },
  afterConfigureGraph: checkAll,
});
