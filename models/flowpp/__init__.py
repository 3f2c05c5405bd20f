"""Flow++ (Ho et al., arXiv 1902.00275) as the conditional flow of a variational dequantizer."""
