"""The mathematics: processes, losses, likelihoods, samplers. Plain numbers and tensors in, tensors out."""
