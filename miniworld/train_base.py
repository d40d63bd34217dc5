"""``train base``: the UNet, on latents of the training pictures and the frozen text encoder's view of their captions."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.utils import save_image

from e4t_core.files.checked_file import write_tensors
from e4t_core.files.file_errors import FileKind
from e4t_core.fingerprint import fingerprint

from .autoencoder import Autoencoder
from .captions import describe
from .dataset import Pictures
from .models import channels_last
from .sampling import alphas_cumprod, sample
from .text_encoder import TextEncoder, pad_tokens
from .training import Run, Schedule
from .unet import UNetModel

log = logging.getLogger(__name__)
SNR_CLAMP = 5.0
CAPTIONS_PER_PICTURE = 2

SHEET = (
    "a photo of face",
    "a photo of face, pale skin, red hair, long hair, blue eyes, round glasses",
    "a photo of face, dark skin, blond hair, short hair, beard, green background",
    "a pencil sketch of face, brown skin, pink hair, mohawk, wearing a scarf, yellow background",
    "pixel art of face, green skin, bald, square glasses, purple background",
    "a watercolor of face, golden skin, blue hair, curly hair, wearing a hat, red background",
    "a photo of emily, blue background",
    "a pencil sketch of james, wearing headphones",
    "a photo of cat, orange fur, striped pattern, green background",
    "a watercolor of cat, black fur, wearing a crown, afar",
)


class _Contexts:
    """Text-encoder states of the captions, computed when first asked for and kept as bfloat16."""

    def __init__(self, text: TextEncoder, pictures: Pictures, seed: int) -> None:
        self.text, self.pictures, self.seed = text.eval(), pictures, seed
        self.kept: dict[tuple[int, int], Tensor] = {}

    def __call__(self, keys: list[tuple[int, int]]) -> Tensor:
        missing = [key for key in dict.fromkeys(keys) if key not in self.kept]
        if missing:
            captions = []
            for index, variant in missing:
                rng = np.random.default_rng([self.seed, index, variant])
                captions.append(describe(*self.pictures.contents(index), rng).text)
            with torch.no_grad():
                states = self.text(pad_tokens(captions)).bfloat16()
            self.kept.update(zip(missing, states.unbind(), strict=True))
        return torch.stack([self.kept[key] for key in keys])


def encode_all(vae: Autoencoder, pictures: Pictures, folder: Path) -> Tensor:
    """Latents of all pictures as the UNet sees them ``(N, 4, 16, 16)``, bfloat16; kept in ``folder``."""
    key = fingerprint(vae.state_dict(), str(pictures.count), str(pictures.seed))
    path = folder / f"latents-{key[:12]}.safetensors"
    if path.exists():
        return load_file(path)["latents"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        parts = [
            vae.to_unet(vae.encode(pictures[list(range(i, min(i + 64, pictures.count)))]).float()).bfloat16()
            for i in range(0, pictures.count, 64)
        ]
    latents = torch.cat(parts)
    write_tensors(path, {"latents": latents}, {}, FileKind("Latents"))
    return latents


def sample_sheet(path: Path, unet: UNetModel, text: TextEncoder, vae: Autoencoder, seed: int = 1) -> None:
    """Two pictures for each caption of ``SHEET``."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        context = text(pad_tokens([caption for caption in SHEET for _ in range(2)])).float()
        latents = sample(unet, context, text(pad_tokens([""])).float(), seed)
        pictures = vae.decode(vae.from_unet(latents)).float().clamp(0, 1)
    save_image(pictures, path, nrow=10)


def train(
    folder: Path,
    pictures: Pictures,
    text: TextEncoder,
    vae: Autoencoder,
    schedule: Schedule,
    batch: int,
    seed: int,
) -> UNetModel:
    """Trains from scratch; an interrupted run in ``folder`` goes on."""
    torch.manual_seed(seed)
    model = channels_last(UNetModel())
    # Residual branches that begin at zero let the first steps learn colors and places, not untangle noise.
    for name, parameter in model.named_parameters():
        if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            torch.nn.init.zeros_(parameter)
    run = Run(folder, model, schedule)
    latents = encode_all(vae, pictures, folder)
    contexts = _Contexts(text, pictures, seed)
    alphas = alphas_cumprod()
    batches = pictures.batches(batch, seed, run.step)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = next(batches)
        z = latents[chosen].float()
        variants = torch.randint(CAPTIONS_PER_PICTURE, (batch,), generator=rng).tolist()
        context = contexts(list(zip(chosen, variants, strict=True)))
        # One draw in each of ``batch`` equal parts of the schedule: the same expectation, less noise in the gradient.
        times = ((torch.arange(batch) + torch.rand(batch, generator=rng)) * (1000 / batch)).long()
        noise = torch.randn(z.shape, generator=rng)
        a = alphas[times].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        error = (model(noisy, times, context).float() - noise).square().mean((1, 2, 3))
        snr = alphas[times] / (1 - alphas[times])
        value = (error * snr.clamp_max(SNR_CLAMP) / snr).mean()
        return value, {"plain": float(error.detach().mean()), "high": float(error.detach()[times > 700].mean())}

    def on_checkpoint(step: int) -> None:
        if step % 500:
            return
        averaged = UNetModel().eval()
        averaged.load_state_dict(run.average or model.state_dict())
        sample_sheet(folder / f"sheet-{step:06d}.png", averaged, text, vae)
        save_weights(folder / "unet.safetensors", averaged)

    run.train(loss, on_checkpoint)
    return run.finish()


def save_weights(path: Path, model: torch.nn.Module, metadata: dict[str, str] | None = None) -> None:
    """A trained model's float16 safetensors; written whole or not at all."""
    state = {k: v.detach().half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    write_tensors(path, state, metadata or {}, FileKind("Weights file"))
