"""The pricing engine."""
