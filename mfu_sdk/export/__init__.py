"""Telling the provider: records in, OTLP out."""
