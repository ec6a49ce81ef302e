"""Blue-green promotion: lease, slots, shadow check, flip, bake, rollback."""
