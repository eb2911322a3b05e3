"""ReVisiT in `generate` of Transformers, from 4.31 to the newest release."""
