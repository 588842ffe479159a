"""Measures a pair from scored samples: no model is loaded here, so any policy's samples and any critic's scores will do."""
