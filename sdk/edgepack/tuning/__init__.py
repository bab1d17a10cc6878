"""What a bundle reaches on this device with other settings: trials in processes of their own, and the search."""
