"""BharatEO: masked-autoencoder pretraining for Earth observation with weak land-cover labels."""

__version__ = "0.1.0"
