"""Gradients of whole pairs by autograd, one pair at a time, for the scripts that need them."""

import torch
from transformers import AutoModelForCausalLM


def log_prob(model, prompt, answer):
    """log pi(answer | prompt), summed over its tokens."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum()


def pair_gradients(name, pairs):
    """Of every pair, the flat gradient of the blocks' linear layers."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).requires_grad_(False)
    weights = [part.weight.requires_grad_() for part in model.base_model.modules()
               if isinstance(part, torch.nn.Linear)]
    for prompt, chosen, rejected in pairs:
        margin = log_prob(model, prompt, chosen) - log_prob(model, prompt, rejected)
        yield torch.cat([part.flatten() for part in torch.autograd.grad(margin, weights)])
