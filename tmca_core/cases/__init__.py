"""What a hospital has: cases, manifests, image readers, masks, partitions and the phantom."""
