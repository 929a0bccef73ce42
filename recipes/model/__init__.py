"""The tri-modal model: raw video, waveform and words through one shared transformer (VATT, modality-agnostic)."""
