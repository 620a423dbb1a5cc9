"""The story model: gemma3's decoder in plain PyTorch, its parameters named as transformers names them."""

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, DIM, FF, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2048, 256, 1024, 8, 4, 2, 64
CONTEXT, WINDOW, PATTERN, EPS = 512, 128, 6, 1e-6
LOCAL_BASE, GLOBAL_BASE = 10000.0, 1000000.0


def is_global(layer):
    """Every sixth layer sees the whole context, the others a sliding window."""
    return (layer + 1) % PATTERN == 0


def transformers_config():
    """The configuration of transformers' Gemma3ForCausalLM with these sizes."""
    import transformers

    return transformers.Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=DIM, intermediate_size=FF, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
        query_pre_attn_scalar=HEAD_DIM, sliding_window=WINDOW, rms_norm_eps=EPS, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, attn_implementation="eager",
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": GLOBAL_BASE},
                         "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_BASE}})


class Norm(nn.Module):
    """x / rms(x) * (1 + weight)."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * (1 + self.weight)).type_as(x)


def rope_tables(base):
    frequency = base ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
    angle = torch.outer(torch.arange(CONTEXT, dtype=torch.float32), frequency)
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def rotate(x, cos, sin):
    first, second = x.float().chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).type_as(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(DIM, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, DIM, bias=False)
        self.q_norm, self.k_norm = Norm(HEAD_DIM), Norm(HEAD_DIM)

    def forward(self, x, rope, mask):
        def heads(values):
            return values.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)

        q = rotate(self.q_norm(heads(self.q_proj(x))), *rope)
        k = rotate(self.k_norm(heads(self.k_proj(x))), *rope).repeat_interleave(HEADS // KV_HEADS, 1)
        v = heads(self.v_proj(x)).repeat_interleave(HEADS // KV_HEADS, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(DIM, FF, bias=False)
        self.up_proj = nn.Linear(DIM, FF, bias=False)
        self.down_proj = nn.Linear(FF, DIM, bias=False)

    def forward(self, x):
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.self_attn, self.mlp, self.drop = Attention(), FeedForward(), nn.Dropout(dropout)
        self.input_layernorm, self.post_attention_layernorm = Norm(DIM), Norm(DIM)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = Norm(DIM), Norm(DIM)

    def forward(self, x, rope, mask):
        x = x + self.drop(self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rope, mask)))
        return x + self.drop(self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))))


class Decoder(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, DIM)
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(LAYERS))
        self.norm = Norm(DIM)


class StoryModel(nn.Module):
    """Logits [B, T, VOCABULARY] of tokens [B, T]."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.model = Decoder(dropout)
        for name, base in (("local", LOCAL_BASE), ("global", GLOBAL_BASE)):
            for part, table in zip(("cos", "sin"), rope_tables(base)):
                self.register_buffer(f"{name}_{part}", table, persistent=False)
        distance = torch.arange(CONTEXT)[:, None] - torch.arange(CONTEXT)[None]
        self.register_buffer("window", (distance >= 0) & (distance < WINDOW), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        length = tokens.shape[1]
        ropes = [(self.local_cos[:length], self.local_sin[:length]), (self.global_cos[:length], self.global_sin[:length])]
        window = self.window[:length, :length]
        x = self.model.embed_tokens(tokens) * DIM**0.5
        for i, layer in enumerate(self.model.layers):
            x = layer(x, ropes[is_global(i)], None if is_global(i) else window)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)
