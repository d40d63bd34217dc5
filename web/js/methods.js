/**
 * The ways to learn a photo, as in e4t_core/methods/registered.py; a test compares the two.
 */

/** Name of a method, as files carry it -> what people call it. */
export const METHODS = new Map([
  ["e4t", "E4T"],
  ["hypernetwork", "HyperNetwork"],
  ["textual_inversion", "Textual Inversion"],
  ["extended_textual_inversion", "Extended Textual Inversion"],
  ["perfusion", "Perfusion"],
  ["lora", "LoRA"],
  ["dreambooth", "DreamBooth"],
  ["dreambooth_ti", "DreamBooth + Textual Inversion"],
]);

/** Classes of the nodes that learn a photo, or may learn it again. */
export const LEARNERS = new Set([
  "E4TPersonalize",
  "E4TApplyConcept",
  "E4THyperNetwork",
  "E4TTextualInversion",
  "E4TExtendedTextualInversion",
  "E4TPerfusion",
  "E4TLoRA",
  "E4TDreamBooth",
  "E4TDreamBoothTI",
]);
