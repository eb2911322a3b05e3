"""A release of Transformers with ReVisiT: forked (`make`) or installed already (`installed`)."""
