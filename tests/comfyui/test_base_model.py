"""ComfyUI's UNet as the core's UNet: what weights it shows, and that lending it others leaves no trace."""

from __future__ import annotations

import re

import comfy.lora
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
from e4t_pack.nodes.host.learning.content_key import WeightHashes
from e4t_pack.nodes.host.networks.base_model import PREFIX, ComfyUNet, UnsupportedModelError, check_supported
from e4t_pack.nodes.host.networks.effective_weights import EffectiveWeights
from e4t_pack.nodes.host.networks.text_encoder import ComfyTextEncoder, UnsupportedCLIPError, unload
from test_oracle_matrix import naive_features
from world import LATENT, hold, make_concept

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"


def unet_lora(model, strength=0.7):
    """LoraLoader on the MODEL."""
    generator = torch.Generator().manual_seed(5)
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    lora = {
        f"{key}.lora_up.weight": torch.randn((320, 2), generator=generator) * 0.1,
        f"{key}.lora_down.weight": torch.randn((2, 320), generator=generator) * 0.1,
        f"{key}.alpha": torch.tensor(2.0),
    }
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]


def noisy(rows=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((rows, 4, LATENT, LATENT), generator=generator), torch.tensor([20, 700][:rows])


def context(rows=2):
    return torch.randn((rows, 77, 768), generator=torch.Generator().manual_seed(2))


def test_effective_weights_are_what_stock_loads_with_loras_and_without_concepts(base, domain):
    model, _ = hold((unet_lora(base[0]), base[1]), make_concept(domain))
    with_lora = unet_lora(base[0])
    comfy.model_management.load_models_gpu([with_lora], force_full_load=True)
    loaded = {key: value.clone() for key, value in with_lora.model.diffusion_model.state_dict().items()}
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    found = EffectiveWeights(model, PREFIX)
    assert found.keys() == loaded.keys()
    assert all(torch.equal(found[key], loaded[key]) for key in loaded)
    assert not torch.equal(
        found["input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"],
        EffectiveWeights(base[0], PREFIX)["input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"],
    )


def test_prediction_and_features_are_those_of_stock(base):
    unet = ComfyUNet(base[0])
    z, t = noisy()
    comfy.model_management.load_models_gpu([base[0]], force_full_load=True)
    network = base[0].model.diffusion_model
    stock = network(z, t.float(), context=context(), transformer_options={})
    assert torch.allclose(unet.denoise(z, t, context()), stock, atol=1e-5)
    sampling = base[0].model.model_sampling
    sigma = sampling.sigma(t.float())
    # Stock input at this noise level is x / sqrt(sigma² + 1): features see z itself.
    x = z * (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
    naive = naive_features(base[0].model, x, sigma, context()[:1])
    assert torch.allclose(unet.features(z, t, context()[:1].expand(2, -1, -1)), naive, atol=1e-4)
    assert unet.feature_width == naive.shape[1]


def test_the_schedule_is_stable_diffusion_s(base):
    alphas = ComfyUNet(base[0]).schedule.alphas_cumprod
    assert alphas.shape == (1000,)
    assert torch.allclose(alphas[[0, 999]], torch.tensor([0.99915, 0.0047]), atol=1e-4)


def test_lent_weights_get_gradients_and_leave_no_trace(base):
    model = base[0]
    unload(model)
    before = {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}
    z, t = noisy()
    with torch.inference_mode(False), torch.enable_grad():
        unet = ComfyUNet(model)
        lent = (unet.parameters()[QUERY] * 1.5).requires_grad_()
        inputs = (z.clone(), t.clone(), context().clone())
        with unet.using({QUERY: lent}):
            lent_output = unet.denoise(*inputs)
            lent_output.square().mean().backward()
        assert lent.grad.abs().sum() > 0
        assert not torch.allclose(lent_output.detach(), unet.denoise(*inputs), atol=1e-4)
        with pytest.raises(RuntimeError, match="stop"), unet.using({QUERY: lent}):
            raise RuntimeError("stop")
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(KeyError, match="no parameter"):
        unet.using({"nonsense.weight": lent})


def test_text_encoder_gives_stock_contexts_and_gradients_to_the_word(base):
    clip = base[1]
    text = ComfyTextEncoder(clip)
    stock = clip.encode_from_tokens(clip.tokenize("a photo of a cat"))
    assert torch.equal(text.empty(), clip.encode_from_tokens(clip.tokenize("")))
    with torch.inference_mode(False), torch.enable_grad():
        word = text.word("cat").requires_grad_()
        encoded = text.encode(["a photo of a {}"] * 2, word.expand(2, -1))
        encoded.square().mean().backward()
    assert torch.allclose(encoded.detach(), stock.expand(2, -1, -1), atol=1e-5)
    assert word.grad.abs().sum() > 0


def test_a_word_of_several_tokens_lists_its_pieces(base):
    with pytest.raises(ValueError, match="must be one token of this CLIP, but it is [2-9]") as error:
        ComfyTextEncoder(base[1]).word("photorealisticness")
    pieces = re.findall(r"'([a-z</>]+)'", str(error.value).split("but it is")[1])
    assert "".join(pieces).replace("</w>", "") == "photorealisticness" and len(pieces) > 1


def test_a_clip_of_another_family_is_refused(base):
    class Other:
        cond_stage_model = torch.nn.Linear(1, 1)
        tokenizer = None

    with pytest.raises(UnsupportedCLIPError, match="this CLIP is a Linear"):
        ComfyTextEncoder(Other())


class Model:
    """A MODEL wired in by mistake."""

    def __init__(self, base, **changes):
        self.model = base.model
        self._changes = changes

    def get_model_object(self, name):
        return self._changes.get(name)


def test_flux_and_the_like_are_refused_by_name(base):
    class Flux:
        diffusion_model = torch.nn.Linear(1, 1)

    model = Model(base[0])
    model.model = Flux()
    with pytest.raises(UnsupportedModelError, match="Stable Diffusion 1.x and 2.x .* is a Flux model"):
        check_supported(model)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"in_channels": 9}, "reads 9 channels, as inpaint"), ({"context_dim": 2048}, "context width 2048 .SDXL")],
)
def test_inpaint_and_sdxl_are_refused(base, monkeypatch, change, sentence):
    config = base[0].model.model_config
    monkeypatch.setattr(config, "unet_config", {**config.unet_config, **change})
    with pytest.raises(UnsupportedModelError, match=sentence):
        check_supported(base[0])


@pytest.mark.parametrize(
    ("node", "values", "sentence"),
    [
        (ModelSamplingDiscrete, ("lcm", False), "prediction type is LCM"),
        (ModelSamplingDiscrete, ("x0", False), "prediction type is X0"),
        (ModelSamplingDiscrete, ("img_to_img", False), "prediction type is IMG_TO_IMG"),
        (ModelSamplingDiscrete, ("img_to_img_flow", False), "prediction type is IMG_TO_IMG_FLOW"),
        (ModelSamplingContinuousEDM, ("eps", 120.0, 0.002), "1000 sigmas whose numbers are not its timesteps"),
    ],
)
def test_what_stock_nodes_make_of_the_sampling_is_refused(base, node, values, sentence):
    (model,) = node().patch(base[0], *values)
    with pytest.raises(UnsupportedModelError, match=sentence):
        check_supported(model)


@pytest.mark.parametrize("values", [("eps", False), ("eps", True), ("v_prediction", True)])
def test_what_stock_nodes_leave_usable_is_used(base, values):
    (model,) = ModelSamplingDiscrete().patch(base[0], *values)
    assert ComfyUNet(model).prediction == ("v" if values[0] == "v_prediction" else "epsilon")


def test_a_quantized_model_is_refused(base, monkeypatch):
    network = base[0].model.diffusion_model
    small = torch.nn.Parameter(torch.zeros(2, dtype=torch.float8_e4m3fn), requires_grad=False)
    monkeypatch.setattr(type(network), "named_parameters", lambda self: iter([("out.2.weight", small)]))
    with pytest.raises(UnsupportedModelError, match="quantized .out.2.weight is torch.float8_e4m3fn"):
        check_supported(base[0])


def test_weight_keys_follow_content_not_objects(base, domain):
    model, _ = hold(base, make_concept(domain))
    weights_key = WeightHashes().weights_key
    key = weights_key(base[0])
    assert weights_key(model) == key, "concepts of ours are left out"
    assert weights_key(base[0].clone()) == key
    assert weights_key(unet_lora(base[0])) != key
    assert weights_key(unet_lora(base[0])) == weights_key(unet_lora(base[0]))
    assert weights_key(unet_lora(base[0], 0.5)) != weights_key(unet_lora(base[0]))
    comfy.model_management.load_models_gpu([unet_lora(base[0])], force_full_load=True)
    assert weights_key(base[0]) == key
