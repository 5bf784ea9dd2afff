"""What several methods share: the bank of task vectors, adapting, objectives, spectra, ranks, calibration."""
