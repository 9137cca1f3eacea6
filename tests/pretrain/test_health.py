from tap_ray.pretrain.health import readiness

GOOD = {"play/r2_contact": 0.81, "play/r2_release": 0.55, "play/r2_mean": 0.25}


def test_a_good_stage_1_is_ready():
    assert readiness(GOOD) == (
        "Stage 1 is ready: held-out R^2 of contact point 0.81, release point 0.55, motion of the next step 0.25."
    )


def test_what_is_missing_is_named_with_what_raises_it():
    assert readiness({**GOOD, "play/r2_contact": 0.41}) == (
        "Stage 1 is not ready: contact point is 0.41 (at least 0.75 is needed; collect more episodes or train longer)."
    )


def test_a_gripper_that_is_not_turned_is_named():
    assert readiness({**GOOD, "play/r2_yaw": 0.18}) == (
        "Stage 1 is not ready: gripper's yaw at the grasp is 0.18 (at least 0.4 is needed; train longer, without "
        "--policy.glimpse-px 0)."
    )


def test_a_number_that_is_none_is_not_good():
    assert readiness({**GOOD, "play/r2_contact": float("nan")}).startswith("Stage 1 is not ready: contact point is nan")


def test_inverse_dynamics_is_asked_for_more():
    seen = {"play/r2_mean": 0.85, "play/gripper_accuracy": 0.95}
    assert readiness(seen) == (
        "Stage 1 is not ready: motion between two images is 0.85 (at least 0.9 is needed; train longer)."
    )


def test_the_accuracy_of_the_gripper_is_no_r2():
    assert readiness({"play/r2_mean": 0.95, "play/gripper_accuracy": 0.96}) == (
        "Stage 1 is ready: held-out R^2 of motion between two images 0.95, accuracy of the gripper 0.96."
    )


def test_next_object_without_reach_targets_is_not_taken_for_inverse_dynamics():
    assert readiness({"play/r2_mean": 0.22, "play/gripper_accuracy": 0.9, "play/action_mse": 0.5}) == (
        "Stage 1 is ready: held-out R^2 of motion of the next step 0.22."
    )


def test_play_without_contact_is_not_ready():
    seen = {"play/r2_mean": 0.22, "play/action_mse": 0.5, "play/reach_mse": 0.8}
    assert readiness(seen) == (
        "Stage 1 is not ready: contact point is unknown (at least 0.75 is needed; collect more episodes or train "
        "longer); release point is unknown (at least 0.5 is needed; collect more play that carries and releases "
        "objects)."
    )


def test_without_held_out_play_nothing_is_said():
    assert readiness({"play/loss": 0.3}) == ""
