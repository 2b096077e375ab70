"""The models of prunability.py: names by library, and how one is built with random weights and inputs that suit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from budget import torchvision_models
from torch import nn


def _words(text: str) -> list[str]:
    return text.split()


TORCHVISION = _words("""
convnext_small efficientnet_b2 efficientnet_b3 efficientnet_b5 inception_v3 maxvit_t mnasnet0_75 mnasnet1_0 mnasnet1_3
mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf
regnet_x_800mf regnet_x_8gf regnet_y_400mf regnet_y_800mf resnet101 resnet18 resnet34 resnet50 shufflenet_v2_x0_5
shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 swin_s swin_v2_s wide_resnet50_2
""")
TIMM = _words("""
botnet26t_256 convmixer_768_32 convnext_atto convnextv2_atto cpubone_nano crossvit_tiny_240 cs3darknet_focus_s csatv2
cspresnet50 deit3_small_patch16_224 deit_tiny_distilled_patch16_224 densenet121 dla34 dpn48b efficientformer_l1
efficientformerv2_s0 efficientnet_b0 efficientnet_cc_b0_4e efficientvim_m1 efficientvit_b0 fasternet_t0 fastvit_t8
flexivit_small gcresnext26ts gernet_s ghostnetv3_050 gmlp_ti16_224 hardcorenas_a hgnetv2_b0 hiera_tiny_224
hieradet_small iformer_t inception_next_atto inception_v4 lambda_resnet26t lcnetv2_small legacy_xception levit_128s
levit_conv_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 mixnet_s mobilevitv2_050 mvitv2_tiny
naflexvit_base_patch16_gap nextvit_small pvt_v2_b0 regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s
resnest14d resnet50 resnetblur18 resnetv2_18 samvit_base_patch16_224 selecsls42 seresnet18 shvit_s1 skresnet18
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 tf_efficientnetv2_b0 tiny_vit_5m_224 tnt_s_patch16_224
twins_pcpvt_small twins_svt_small vit_relpos_small_patch16_224 vit_small_r26_s32_224 vitamin_small_224 volo_d1_224
xception41
""")


@dataclass(frozen=True)
class Small:
    """A Hugging Face model: its auto class without "AutoModel", a small config, and the kind of its inputs."""

    head: str
    inputs: str = "tokens"
    config: dict[str, Any] = field(default_factory=dict)
    model_type: str = ""  # where it is not the name


_BERT = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
_GPT = {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_T5 = {
    "vocab_size": 99,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_SEQ2SEQ = {
    "vocab_size": 99,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": 2,
}
_VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
_WAVE = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": [32, 32],
    "conv_stride": [4, 2],
    "conv_kernel": [8, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_MAMBA = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}

HUGGING_FACE = {
    "albert": Small("ForSequenceClassification", config={**_BERT, "embedding_size": 32}),
    "bart": Small("ForSeq2SeqLM", "seq2seq", {**_SEQ2SEQ, "max_position_embeddings": 64}),
    "big_bird": Small("ForSequenceClassification", config={**_BERT, "attention_type": "original_full"}),
    "bloom": Small("ForCausalLM", config={"vocab_size": 99, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "convnext": Small("ForImageClassification", "image", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "deberta_v2": Small(
        "ForSequenceClassification",
        config={**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        model_type="deberta-v2",
    ),
    "deit": Small("DeiTForImageClassification", "image", _VIT),
    "distilbert": Small(
        "ForSequenceClassification",
        config={"vocab_size": 99, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
    "dpt": Small(
        "ForDepthEstimation",
        "image",
        {
            **_VIT,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
            "fusion_hidden_size": 32,
            "is_hybrid": False,
        },
    ),
    "efficientnet": Small(
        "ForImageClassification", "image", {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}
    ),
    "electra": Small("ForSequenceClassification", config={**_BERT, "embedding_size": 32}),
    "falcon": Small(
        "ForCausalLM",
        config={"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "funnel": Small(
        "ForSequenceClassification",
        config={
            "vocab_size": 99,
            "block_sizes": [1, 1],
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 128,
            "num_decoder_layers": 1,
        },
    ),
    "gemma": Small("ForCausalLM", config=_LLAMA),
    "gemma2": Small("ForCausalLM", config={**_LLAMA, "sliding_window": 8}),
    "gpt2": Small("ForCausalLM", config=_GPT),
    "gpt_neo": Small(
        "ForCausalLM",
        config={
            "vocab_size": 99,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gpt_neox": Small("ForCausalLM", config=_BERT),
    "hubert": Small("ForCTC", "wave", _WAVE),
    "llama": Small("ForCausalLM", config=_LLAMA),
    "llama+mask": Small("ForCausalLM", "tokens+mask", _LLAMA, "llama"),
    "longformer": Small("ForSequenceClassification", "tokens", {**_BERT, "attention_window": [8, 8]}),
    "mamba": Small("ForCausalLM", config=_MAMBA),
    "mamba2": Small("ForCausalLM", config={**_MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8}),
    "mistral": Small("ForCausalLM", config=_LLAMA),
    "mobilenet_v2": Small("ForImageClassification", "image", {"image_size": 64}),
    "modernbert": Small(
        "ForSequenceClassification", config={**_BERT, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}
    ),
    "mpnet": Small("ForSequenceClassification", config=_BERT),
    "mpt": Small("ForCausalLM", config={"vocab_size": 99, "d_model": 64, "n_layers": 2, "n_heads": 4}),
    "opt": Small(
        "ForCausalLM",
        config={
            "vocab_size": 99,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
        },
    ),
    "patchtst": Small(
        "PatchTSTForPrediction",
        "series",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "prediction_length": 8,
        },
    ),
    "poolformer": Small("ForImageClassification", "image", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}),
    "qwen2_moe": Small(
        "ForCausalLM",
        config={
            **_LLAMA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3": Small("ForCausalLM", config=_LLAMA),
    "recurrent_gemma": Small(
        "ForCausalLM", config={**_LLAMA, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8}
    ),
    "regnet": Small(
        "ForImageClassification",
        "image",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "groups_width": 8},
    ),
    "resnet": Small(
        "ForImageClassification",
        "image",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]},
    ),
    "rt_detr": Small(
        "ForObjectDetection",
        "image",
        {
            "d_model": 64,
            "encoder_hidden_dim": 64,
            "encoder_layers": 1,
            "encoder_ffn_dim": 128,
            "encoder_attention_heads": 4,
            "decoder_layers": 2,
            "decoder_ffn_dim": 128,
            "num_queries": 10,
            "decoder_attention_heads": 4,
            "num_denoising": 0,
            "encoder_in_channels": [64, 96, 128],
            "feat_strides": [8, 16, 32],
            "decoder_in_channels": [64, 64, 64],
            "eval_size": None,
        },
    ),
    "segformer": Small(
        "ForSemanticSegmentation",
        "image",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 64,
            "num_labels": 5,
        },
    ),
    "siglip": Small("SiglipVisionModel", "image", _VIT, "siglip_vision_model"),
    "swin": Small("ForImageClassification", "image", _SWIN),
    "swinv2": Small("ForImageClassification", "image", _SWIN),
    "t5": Small("ForSeq2SeqLM", "seq2seq", _T5),
    "t5+cache": Small("ForSeq2SeqLM", "seq2seq+cache", _T5, "t5"),
    "vit": Small("ForImageClassification", "image", _VIT),
    "wav2vec2": Small("ForCTC", "wave", _WAVE),
    "whisper": Small(
        "WhisperForConditionalGeneration",
        "spectrum",
        {**_SEQ2SEQ, "pad_token_id": 0, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32},
    ),
    "yolos": Small("ForObjectDetection", "image", {**_VIT, "image_size": [32, 32], "num_detection_tokens": 5}),
}
ZOO = {"tv": TORCHVISION, "timm": TIMM, "hf": list(HUGGING_FACE)}

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def _tokens(batch: int = 2, length: int = 16) -> torch.Tensor:
    return torch.randint(3, 99, (batch, length))


INPUTS: dict[str, Callable[[int], Inputs]] = {
    "tokens": lambda image: ((), {"input_ids": _tokens()}),
    "tokens+mask": lambda image: ((), {"input_ids": _tokens(), "attention_mask": torch.ones(2, 16, dtype=torch.long)}),
    "seq2seq": lambda image: ((), {"input_ids": _tokens(), "decoder_input_ids": _tokens(2, 9)}),
    "seq2seq+cache": lambda image: ((), {"input_ids": _tokens(), "decoder_input_ids": _tokens(2, 9)}),
    "image": lambda image: ((), {"pixel_values": torch.randn(2, 3, image, image)}),
    "wave": lambda image: ((torch.randn(2, 400),), {}),
    "series": lambda image: ((torch.randn(2, 32, 3),), {}),
    "spectrum": lambda image: ((), {"input_features": torch.randn(2, 16, 64), "decoder_input_ids": _tokens(2, 9)}),
}


def torchvision_model(name: str) -> tuple[nn.Module, Inputs]:
    """A classifier of torchvision, on images of the size that it was written for."""
    model = torchvision_models().get_model(name, weights=None)
    side = 299 if name.startswith("inception") else 256 if "swin_v2" in name else 224
    return model, ((torch.randn(2, 3, side, side),), {})


def timm_model(name: str) -> tuple[nn.Module, Inputs]:
    """A classifier of timm, on images of its own size."""
    torchvision_models()  # timm imports torchvision, which may need its schemas declared
    import timm

    model = timm.create_model(name, pretrained=False)
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    return model, ((torch.randn(2, *size),), {})


def hugging_face_model(name: str) -> tuple[nn.Module, Inputs]:
    """A small model from a config of its family."""
    torchvision_models()  # transformers imports it where it is installed
    import transformers

    small = HUGGING_FACE[name]
    config = transformers.AutoConfig.for_model(small.model_type or name, **small.config)
    if hasattr(config, "use_cache"):
        config.use_cache = small.inputs.endswith("+cache")
    if small.head.startswith("For"):
        model = getattr(transformers, f"AutoModel{small.head}").from_config(config)
    else:
        model = getattr(transformers, small.head)(config)
    side = getattr(config, "image_size", 64)
    return model, INPUTS[small.inputs](side if isinstance(side, int) and side <= 64 else 32 if name == "yolos" else 64)


BUILD = {"tv": torchvision_model, "timm": timm_model, "hf": hugging_face_model}


def build(zoo: str, name: str) -> tuple[nn.Module, Inputs]:
    """A model in eval mode with its inputs, the same in every process, its numbers such that mistakes show."""
    torch.manual_seed(0)
    model, (args, kwargs) = BUILD[zoo](name)
    model.eval()
    vary(model)
    settle(model, args, kwargs)
    return model, (args, kwargs)


def vary(model: nn.Module) -> None:
    """Numbers that let mistakes show.

    Fresh norms, biases and layer scales hold one number, or nearly, which hides wrong index maps; weights with a small
    spread make a network whose output is its last bias.
    """
    with torch.no_grad():
        for p in model.parameters():
            if not p.is_floating_point():
                continue
            if p.numel() == 1:
                p.fill_(0.5) if float(p) == 0 else None  # a gain that starts at zero switches its branch off
                continue
            if p.std() < 1e-3:
                p.add_(torch.randn_like(p) * (0.2 if p.ndim != 2 else 0.02))
            usual = (p.shape[0] / p.numel()) ** 0.5
            if p.ndim > 1 and p.std() < usual / 2:
                p.mul_(usual / p.std())


def settle(model: nn.Module, args: Any, kwargs: Any) -> None:
    """Batch norms get the statistics of real activations: with the initial ones some outputs ignore the input."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.momentum, m) for m in norms]
    try:
        for m in norms:
            m.train()
            m.momentum = 1.0
        if norms:
            with torch.no_grad():
                model(*args, **kwargs)
    except (RuntimeError, ValueError):  # one value per channel has no variance: the initial statistics stay
        pass
    finally:
        for momentum, m in before:
            m.eval()
            m.momentum = momentum
