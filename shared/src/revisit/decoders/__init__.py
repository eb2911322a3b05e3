"""Other decoders, as formulas on logits: VCD, RITUAL, M3ID, DoLa."""
