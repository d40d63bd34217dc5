"""Base model and image backbone, as every trainer outside ComfyUI takes them: settings, loaders, and what they cost.

settings   the sections [base] and [backbone] of a config, and how a section is checked
networks                  opens what they name; on the device "meta" without weights, to check and estimate
diffusers_base            a base model, from a diffusers_folder or a single_file
diffusers_unet, clip_text, latents      its UNet, text encoder and autoencoder behind the core's protocols
factories                 kinds "python": what a config names as package.module:attribute
cost                      operations and memory of a pass, counted on the meta device
"""
