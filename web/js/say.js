/**
 * The panels' texts in the page's language. English stands where a text is used; other languages are in
 * locales/<language>/main.json below "e4t", which ComfyUI serves. What a language lacks stays English.
 */
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const FALLBACK = "en";
/** English text -> the page's language. */
let texts = {};

/**
 * A text in the page's language.
 * @param {string} text in English, with {names} for values.
 * @param {Object<string, unknown>} values by name.
 * @returns {string}
 */
export function say(text, values = {}) {
  const said = typeof texts[text] === "string" ? texts[text] : text;
  return said.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

app.registerExtension({
  name: "e4t.texts",
  // Before any workflow is opened.
  async init() {
    try {
      const language = app.extensionManager.setting.get("Comfy.Locale") ?? FALLBACK;
      if (language !== FALLBACK) texts = (await api.getCustomNodesI18n())[language]?.e4t ?? {};
    } catch (error) {
      console.warn("E4T: its texts stay English:", error);
    }
  },
});
