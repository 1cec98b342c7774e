"""The paper's tables and figures: rivals, ablation, what each part of the network is worth."""
