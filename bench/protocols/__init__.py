"""The tuning protocols, as versioned data."""
