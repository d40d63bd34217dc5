/**
 * What of the open workflow the panels have to know: where a node is, in however many subgraphs.
 */
import { app } from "../../../scripts/app.js";

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
