/**
 * What the latest jobs of this server have said, for a page that was loaded anew.
 */
import { api } from "../../../scripts/api.js";

const JOBS = 8;
let jobs = null;

/**
 * Visits one key of all nodes' outputs, from the latest job to the earliest.
 * @param {string} key
 * @param {(workflow: string, node: string, content: object) => void} visit
 */
export async function eachOutput(key, visit) {
  jobs ??= api.fetchApi(`/history?max_items=${JOBS}`).then((answer) => (answer.ok ? answer.json() : {}));
  for (const { prompt, outputs } of Object.values(await jobs).reverse()) {
    const workflow = prompt?.[3]?.extra_pnginfo?.workflow?.id;
    if (!workflow) continue;
    for (const [node, output] of Object.entries(outputs ?? {})) {
      if (output?.[key]?.[0]) visit(workflow, node, output[key][0]);
    }
  }
}
