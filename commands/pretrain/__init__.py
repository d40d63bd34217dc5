"""Pre-training of a domain (the paper's section 3.3), from a config to a domain file.

    python -m commands.prepare  LAYOUT SOURCE TARGET     pictures as they are downloaded -> shards
    python -m commands.pretrain.validate --config NAME   is everything there and right, and what will it take?
    python -m commands.pretrain --config NAME            train; Ctrl-C saves, the same command goes on

The way of a run, and where its parts lie:

    configs/*.toml                 the shipped configs, line by line with where each number comes from
    config/   sections             what a config may say;  config_file reads it;  changed_settings: of a resumed run
    data/     *_source             rows of pictures: a folder, tar shards, parquet (configured_sources opens them)
              sample_order         which row a global sample index means: a function of the seed alone
              training_data        sample by sample;  micro_batches: by processes and workers;  corruption: too much?
              preparation, prepare_shards, dataset_layouts            what commands.prepare does
    ../base/  networks             the frozen base model and image backbone, shared with other trainers
    run/      extractor, inputs    pictures -> latents and CLIP features, as they come or from feature_cache
              encoder_and_offsets  what is trained, and its loss;  weight_average: what the domain file gets
              training             THE loop;  processes, stop_signals, errors: how it starts together and ends
              checkpoints, checkpoint_tensors, journal, previews, domain_file                 what it leaves
    start     checks, trains and reports, for one process
    checks    what validate finds: data, networks, prompts;  disk_room: folders and disks
    estimate  memory and time, counted by the run's own loss on networks without weights

A result depends on the config, the data and the seed: not on workers, processes, micro-batches (but for rounding) or on
how often the run was stopped.
"""
