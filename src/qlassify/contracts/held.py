"""Rules that the code leaves no way to break, each with the test that would fail if it did.

They are part of what the literature asks for, and would be dead predicates: nothing could ever make them fire. A test
checks that every test named here exists.
"""

from __future__ import annotations

from qlassify.contracts.rule import Held

HELD: tuple[Held, ...] = (
    Held(
        "Rates are positive and finite, batches and epochs at least 1.",
        "The settings refuse everything else when they are read.",
        "tests/config/test_classify_config.py::test_mistakes_name_option_value_and_what_is_accepted",
        "C-HP-001, C-HP-002",
    ),
    Held(
        "A limit on tokens larger than the texts costs nothing.",
        "Batches are packed tokens, or rectangles of similar length where an architecture cannot be packed; none is "
        "padded to the limit.",
        "tests/data/test_packing.py::test_every_token_of_the_chosen_rows_comes_once_at_its_place",
        "C-HP-004",
    ),
    Held(
        "A warm-up has at least one step, and applies to every schedule.",
        "The rate is a function of the step's number.",
        "tests/training/test_schedule.py::test_warmup_steps",
        "C-HP-005",
    ),
    Held(
        "Rows accumulated over batches make the step of one large batch.",
        "Losses are summed and divided once by the number of rows.",
        "tests/methods/test_inject.py::test_f_edge_007_two_halves_give_the_gradient_of_the_whole",
        "C-HP-002",
    ),
    Held(
        "AdamW corrects its bias, with beta 0.9 and 0.999 and epsilon 1e-8; there are no 8-bit or paged states.",
        "The optimiser has no such options.",
        "tests/training/test_optimizer.py::test_steps_equal_adamw_by_hand",
    ),
    Held(
        "A rank fits every target.",
        "A rank above a target's shorter side is refused before anything is wrapped.",
        "tests/methods/test_inject.py::test_a_rank_beyond_a_target_is_refused_before_anything_is_wrapped",
    ),
    Held(
        "Targets match something.",
        "A name without a layer is refused with the names that there are.",
        "tests/methods/test_inject.py::test_f_edge_005_an_unknown_target_lists_what_exists_and_suggests",
    ),
    Held(
        "The head is never a target.",
        "all-linear is every linear layer of the backbone, and the head is no part of it.",
        "tests/methods/test_inject.py::test_all_linear_is_every_linear_layer_of_the_backbone",
    ),
    Held(
        "The head is saved with the adapter, and what is loaded gives the same logits.",
        "A saved classifier is compared bitwise in a fresh process.",
        "tests/jobs/test_pipeline.py::test_a_fresh_process_gives_bitwise_the_same_logits",
    ),
    Held(
        "The head is not quantised and is computed in fp32; what is trained is fp32.",
        "Only linear layers of the backbone are kept in few bits.",
        "tests/models/test_head.py::test_the_head_is_fp32_whatever_comes_in",
    ),
    Held(
        "Everything that is trained gets a gradient and moves.",
        "One suite holds every method to it.",
        "tests/conformance/test_methods.py::test_03_and_04_every_parameter_gets_a_gradient_and_moves",
    ),
    Held(
        "Padding tells nothing: a text's logits do not depend on its batch, whatever the padding token is.",
        "Texts are pooled by their bounds and never by a token's id.",
        "tests/jobs/test_pipeline.py::test_predictions_do_not_depend_on_order_or_company",
    ),
    Held(
        "Labels are numbered without gaps, the head has one output for each, and no later file shifts them.",
        "The label map comes from the training rows and is saved.",
        "tests/data/test_labels.py::test_unseen_labels_are_rejected_and_nothing_is_shifted",
    ),
    Held(
        "Rows with equal texts stay on one side of a split that is drawn here.",
        "Rows are split in groups of equal texts.",
        "tests/data/test_dataset.py::test_repeated_texts_never_straddle_the_split",
    ),
    Held(
        "Class weights are one positive number for each class.",
        "Others are refused.",
        "tests/config/test_classify_config.py::test_class_weights_are_one_positive_number_per_class",
    ),
    Held(
        "Full fine-tuning does not go with low-bit weights.",
        "The combination is refused before anything is written.",
        "tests/jobs/test_qlora_job.py::test_full_fine_tuning_of_low_bit_weights_is_refused_before_anything_is_written",
    ),
    Held(
        "Prefix tuning runs only where a prefix can stand in packed attention.",
        "Architectures that cannot be packed are refused; prompt tuning at the input alone is not offered.",
        "tests/methods/test_prefix.py::test_an_architecture_that_runs_padded_is_refused",
    ),
    Held(
        "An adapter that was trained on low-bit weights is merged into their numbers; merging into others says how far "
        "off it is.",
        "Exports are loaded and compared before they are kept.",
        "tests/export/test_merged_export.py::test_merging_into_the_original_weights_is_another_classifier_and_says_how_far",
    ),
    Held(
        "There is no fp16, in which only 80 % of QLoRA's runs on 7 B ended without error (artidoro/qlora, README.md).",
        "Precision is bf16 where hardware multiplies it, else fp32.",
        "tests/training/test_precision.py::test_bf16_where_it_is_faster",
    ),
    Held(
        "A probe has no learning rate to get wrong.",
        "It is solved for, and says which settings had no effect.",
        "tests/jobs/test_probe_job.py::test_settings_without_an_effect_are_named",
    ),
)
