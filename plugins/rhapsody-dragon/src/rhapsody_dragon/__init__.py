"""The Dragon backends of RHAPSODY: `dragon` (V3), `dragon_v2` and `dragon_v1`."""
