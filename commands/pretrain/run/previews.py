"""Preview grids: what the domain makes of a few training photos before any tuning, at fixed prompts and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from commands.pretrain.config.sections import Config
from commands.pretrain.data.pictures import CorruptSample, to_float
from commands.pretrain.data.training_data import TrainingData
from e4t_core.files.whole_file import replacing

from .encoder_and_offsets import EncoderAndOffsets
from .extractor import Extractor

PHOTOS, STEPS, GUIDANCE, SEED = 4, 20, 5.0, 0
LARGEST = 256  # pixels; of a tile


class Previews:
    """Row by row: a photo, then every prompt with the word that the encoder gives for it, refined at every step."""

    def __init__(self, config: Config, data: TrainingData, extractor: Extractor) -> None:
        self.prompts, self.extractor = config.output.preview_prompts, extractor
        images = []
        for number in range(PHOTOS):
            try:
                images.append(data.read_row(number * data.rows // PHOTOS).image)
            except CorruptSample:
                continue
        self.photos = torch.stack(images) if images else None
        prediction = {"epsilon": "epsilon", "v": "v_prediction"}[extractor.base.unet.prediction]
        alphas = extractor.base.unet.schedule.alphas_cumprod.double()
        betas = 1 - alphas / F.pad(alphas[:-1], (1, 0), value=1.0)
        self.scheduler = DDIMScheduler(
            trained_betas=betas.numpy(), prediction_type=prediction, clip_sample=False, timestep_spacing="trailing"
        )

    @torch.no_grad()
    def draw(self, networks: EncoderAndOffsets, path: Path) -> None:
        """Write a grid as PNG; nothing if no photo could be read."""
        if self.photos is None:
            return
        latents, features = self.extractor(self.photos)
        rows = [to_float(self.photos)]
        for prompt in self.prompts:
            # One prompt at a time: as much memory as training needs is not left for all of them.
            drawn = torch.cat(
                [self._sample(networks, prompt, *part) for part in self._parts(networks, latents, features)]
            )
            rows.append(self.extractor.base.vae.decode(drawn).float().cpu().clamp(0, 1))
        tiles = torch.stack(rows, dim=1)
        side = min(LARGEST, tiles.shape[-1])
        tiles = F.interpolate(tiles.flatten(0, 1), size=(side, side), mode="bilinear", antialias=True)
        grid = tiles.view(len(self.photos), len(rows), 3, side, side).permute(0, 3, 1, 4, 2)
        pixels = (grid.reshape(len(self.photos) * side, len(rows) * side, 3) * 255).round().byte().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            Image.fromarray(np.ascontiguousarray(pixels)).save(part, "PNG")

    def _parts(self, networks: EncoderAndOffsets, latents: Tensor, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What shares weights: all photos, or each alone."""
        size = 1 if networks.offsets.per_photo else len(latents)
        return list(zip(latents.split(size), features.split(size), strict=True))

    def _sample(self, networks: EncoderAndOffsets, prompt: str, like: Tensor, features: Tensor) -> Tensor:
        unet, text = self.extractor.base.unet, self.extractor.base.text
        count, empty = len(like), networks.empty
        noise = torch.Generator().manual_seed(SEED)
        z = torch.randn(like.shape, generator=noise).to(like.device)
        self.scheduler.set_timesteps(STEPS)
        with unet.using(networks.offsets.apply_all(unet.parameters(), features)):
            for t in self.scheduler.timesteps:
                times = t.expand(count).to(like.device)
                seen = unet.features(z, times, empty.expand(count, -1, -1)).float()
                context = text.encode([prompt] * count, networks.words(features, seen))
                both = torch.cat([context, empty.expand(count, -1, -1).to(context.dtype)])
                said = unet.denoise(torch.cat([z, z]), times.repeat(2), both).float()
                positive, negative = said.chunk(2)
                z = self.scheduler.step(negative + GUIDANCE * (positive - negative), int(t), z).prev_sample
        return z
